from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.formats import Block
from hfbatch.shards import Basis, Limits, Piece, Shard, SourceFile, cut, limits_for, number_of

blocks = st.lists(st.builds(Block, st.integers(0, 60), st.integers(0, 4000)), max_size=5)


def files_of(content):
    return [SourceFile(f"f{i:02}", f"v{i}", tuple(blocks)) for i, blocks in enumerate(content)]


def rows_of(shards):
    return sorted((p.path, p.fingerprint, row) for s in shards for p in s.pieces for row in range(p.start, p.stop))


def all_rows(files):
    return sorted((file.path, file.fingerprint, row) for file in files for row in range(file.rows))


@given(st.lists(blocks, max_size=6), st.integers(1, 100), st.integers(100, 5000))
def test_every_row_is_in_exactly_one_shard_within_the_limits(content, rows, nbytes):
    files = files_of(content)
    shards = cut(files, Limits(rows, nbytes))
    assert rows_of(shards) == all_rows(files)
    assert all(0 < shard.rows <= rows for shard in shards)
    assert cut(files, Limits(rows, nbytes)) == shards


@given(st.lists(blocks, min_size=1, max_size=6), st.integers(1, 100), st.integers(1, 100), st.integers(0, 5), st.data())
def test_another_limit_or_a_changed_file_leaves_good_rows_as_they_are(content, rows, other_rows, changed, data):
    """Each row is again in exactly one shard, and what held good of a committed one is kept or carried over."""
    files = files_of(content)
    before = cut(files, Limits(rows, 10**9))
    assert cut(files, Limits(other_rows, 10**9), basis=Basis(2, before)) == before
    committed = {shard.id for shard in before if data.draw(st.booleans())}
    changed %= len(files)
    now = [SourceFile(f.path, "new" if i == changed else f.fingerprint, f.blocks) for i, f in enumerate(files)]
    now.append(SourceFile("zz", "v", (Block(30, 100),)))
    after = cut(now, Limits(other_rows, 10**9), basis=Basis(2, before, committed, standing=committed))
    assert rows_of(after) == all_rows(now)
    untouched = {s for s in before if all(piece.path != files[changed].path for piece in s.pieces)}
    assert untouched <= set(after)
    old = {shard.id: rows_of([shard]) for shard in before}
    for shard in after:
        assert shard.base is None or set(rows_of([shard])) < set(old[shard.base])
    inferred = rows_of(shard for shard in after if shard.base is None and shard.id not in committed)
    known = {row for id in committed for row in old[id]}
    assert known.isdisjoint(inferred)
    dropped = not {shard.id for shard in after}.issuperset(old)
    assert all(shard.staged == (dropped or not before) for shard in after if shard not in before)


@settings(deadline=None, max_examples=50)
@given(st.lists(blocks, min_size=1, max_size=4), st.integers(1, 100), st.integers(0, 4), st.data())
def test_what_was_published_and_holds_good_again_is_carried_over_from_there(content, rows, changed, data):
    """A file changed, that plan was never published, and the file is as it was again."""
    files = files_of(content)
    published = cut(files, Limits(rows, 10**9))
    changed %= len(files)
    other = [SourceFile(f.path, "other" if n == changed else f.fingerprint, f.blocks) for n, f in enumerate(files)]
    committed = {shard.id for shard in published}
    between = cut(other, Limits(rows, 10**9), basis=Basis(2, published, committed, committed, published=True))
    committed |= {shard.id for shard in between if data.draw(st.booleans())}
    redo = {shard.id for shard in published if data.draw(st.booleans())}
    basis = Basis(3, between, committed, published=True, redo=redo, last=published)
    back = cut(files, Limits(rows, 10**9), basis=basis)
    assert rows_of(back) == all_rows(files)
    inferred = rows_of(shard for shard in back if shard.base is None and shard.id not in committed)
    known = {row for shard in published if shard.id not in redo for row in rows_of([shard])}
    assert known.isdisjoint(inferred)
    assert all(shard.staged for shard in back if shard not in between)


def one(name="a", rows=10, version="v"):
    return SourceFile(name, version, (Block(rows, 10),))


def test_rows_that_come_back_get_a_new_id_so_that_what_is_dead_stays_dead():
    first = cut([one("a"), one("b", 2000)], Limits(100, 10**9))
    second = cut([one("b", 2000)], Limits(100, 10**9), basis=Basis(2, first))
    third = cut([one("a"), one("b", 2000)], Limits(100, 10**9), basis=Basis(3, second))
    again = {s.id for s in third} - {s.id for s in second}
    assert again.isdisjoint(s.id for s in first)
    assert {number_of(id) for id in again} == {3}


def test_shards_are_made_again_or_retried_on_request():
    first = cut([one("a", 60), one("b", 60), one("c", 60)], Limits(100, 10**9))
    a, b, c = (shard.id for shard in first)
    after = cut(
        [one("a", 60), one("b", 60), one("c", 60)],
        Limits(100, 10**9),
        basis=Basis(2, first, committed={a, b, c}, standing={a, b, c}, retry={a}, redo={b}),
    )
    assert [(s.base, s.retry, s.staged) for s in after] == [(a, True, True), (None, False, True), (None, False, False)]
    assert after[2] == first[2]


def test_what_a_part_of_an_uncommitted_shard_carried_over_is_carried_on():
    files = [one("a"), one("b"), one("c")]
    first = cut(files, Limits(100, 10**9))
    files[0] = one("a", version="w")
    second = cut(files, Limits(100, 10**9), basis=Basis(2, first, committed={first[0].id}))
    files[1] = one("b", version="w")
    third = cut(files, Limits(100, 10**9), basis=Basis(3, second))
    (rest,) = (shard for shard in third if shard.base)
    assert ([piece.path for piece in rest.pieces], rest.base) == (["c"], first[0].id)


def test_a_lower_limit_on_rows_carries_over_what_stays():
    first = cut([one("a", 60)], Limits(100, 10**9))
    (shard,) = cut([one("a", 40)], Limits(100, 10**9), basis=Basis(2, first, committed={first[0].id}))
    assert (shard.base, shard.rows) == (first[0].id, 40)


def test_small_files_share_a_shard_and_a_large_one_is_cut_along_its_row_groups():
    small = [SourceFile(f"a{i}", "v", (Block(10, 10),)) for i in range(3)]
    large = SourceFile("b", "v", (Block(60, 60), Block(60, 60), Block(60, 60)))
    shards = cut([*small, large], Limits(100, 10**9))
    assert [[(p.path, p.start, p.stop) for p in s.pieces] for s in shards] == [
        [("a0", 0, 10), ("a1", 0, 10), ("a2", 0, 10)],
        [("b", 0, 60)],
        [("b", 60, 120)],
        [("b", 120, 180)],
    ]


def test_a_row_group_over_the_limit_is_cut_into_equal_parts():
    shards = cut([SourceFile("a", "v", (Block(250, 10),))], Limits(100, 10**9))
    assert [shard.rows for shard in shards] == [83, 83, 84]


def test_bytes_limit_a_shard_as_rows_do():
    shards = cut([SourceFile("a", "v", (Block(100, 1000),))], Limits(1000, 300))
    assert [shard.rows for shard in shards] == [25, 25, 25, 25]


def test_the_id_depends_on_content_and_filter_alone():
    piece = Piece("a", "v", 0, 10)
    assert Shard.of([piece], None).id == Shard.of([piece], None).id
    others = [Piece("b", "v", 0, 10), Piece("a", "w", 0, 10), Piece("a", "v", 0, 11), Piece("a", "v", 1, 10)]
    ids = {Shard.of([piece], None).id, Shard.of([piece], "x > 1").id, *(Shard.of([p], None).id for p in others)}
    assert len(ids) == 6


def test_a_small_input_is_cut_finer_so_that_actors_share_it_and_little_is_repeated():
    assert limits_for(6000, 16384, 1, 1).rows == 8
    assert limits_for(6000, 16384, 10**8, 100).rows == 1024
    assert limits_for(10**9, 16384, 10**8, 100).rows == 16384
    assert limits_for(10**9, 16384, 64 << 20, 786_432).rows == 682
