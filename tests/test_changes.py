"""New, changed, done, gone: by what is committed and what was published."""

import pytest

from hfbatch.changes import Changes, changes_of
from hfbatch.records import Receipt
from hfbatch.shards import Piece, Shard


def shard(*files, number=1, **more):
    """Ten rows of each `name` or `name:version`."""
    pairs = [each.partition(":") for each in files]
    return Shard.of([Piece(name, version or "1", 0, 10) for name, _, version in pairs], None, number, **more)


def receipt(shard, run_id="now", rows=None, carried=0):
    return Receipt(shard.id, "f" * 64, "data/x", shard.rows if rows is None else rows, 1, "", {}, {}, run_id, carried)


A, B, AB = shard("a"), shard("b"), shard("a", "b")


@pytest.mark.parametrize(
    ("shards", "committed", "before", "published", "found"),
    [
        ([A, B], [], [], [], ("ab", "", "", "")),
        ([A, B], [A], [A, B], [], ("b", "", "a", "")),
        ([A, B], [A, B], [A, B], [A, B], ("", "", "ab", "")),
        ([A, B], [A], [A], [A], ("b", "", "a", "")),
        ([A], [A], [A, B], [A, B], ("", "", "a", "b")),
        ([shard("a:2"), B], [A, B], [A, B], [A, B], ("", "a", "b", "")),
        ([shard("a:2"), B], [B], [shard("a:2"), B], [A, B], ("", "a", "b", "")),
        ([shard("a:2"), B], [A, B], [A, B], [], ("", "a", "b", "")),
        ([shard("a:2"), B], [], [A, B], [], ("ab", "", "", "")),
        ([shard("a", base=AB.id), shard("b:2")], [AB], [AB], [AB], ("", "b", "a", "")),
        ([shard("a", base=A.id, retry=True)], [A], [A], [A], ("", "", "a", "")),
        ([A], [], [A], [A], ("a", "", "", "")),
    ],
    ids=[
        "a new output",
        "resumed",
        "nothing new",
        "a new file",
        "a file is gone",
        "changed since it was published",
        "the same, resumed",
        "changed since an interrupted run committed it",
        "changed before anything was committed",
        "a neighbour in a bundle changed",
        "tried again",
        "damaged and dropped",
    ],
)
def test_each_file_is_new_changed_or_done(shards, committed, before, published, found):
    made = changes_of(shards, {shard.id for shard in committed}, before, published)
    assert tuple("".join(sorted(part)) for part in (made.new, made.changed, made.skipped, made.removed)) == found


def test_a_file_of_several_shards_is_done_when_all_of_them_are():
    halves = [Shard.of([Piece("a", "1", start, start + 5)], None) for start in (0, 5)]
    assert changes_of(halves, {halves[0].id}, halves, []).new == {"a"}
    assert changes_of(halves, {half.id for half in halves}, halves, []).skipped == {"a"}


def test_counts_are_of_what_this_run_committed_and_left():
    changes = Changes(new=frozenset("b"), changed=frozenset("ac"), skipped=frozenset("d"))
    shards = [shard("a", "b"), shard("c"), shard("d"), shard("e")]
    done = [receipt(shards[0], rows=18), receipt(shards[1], rows=4), receipt(shards[2], run_id="before")]
    counts = changes.as_counts(shards, done, "now")
    assert counts == {
        "files": 4,
        "files_new": 1,
        "files_changed": 2,
        "files_skipped": 1,
        "files_failed": 1,
        "files_removed": 0,
        "shards_changed": 2,
        "shards_skipped": 1,
        "shards_failed": 1,
        "rows_changed": 14,
    }


def test_rows_that_are_carried_over_have_not_changed():
    bundle = shard("a", "b", base="x")
    changes = Changes(changed=frozenset("a"), skipped=frozenset("b"))
    assert changes.as_counts([bundle], [receipt(bundle, carried=10)], "now")["rows_changed"] == 10
    assert changes.as_counts([bundle], [receipt(bundle, carried=15)], "now")["rows_changed"] == 5
