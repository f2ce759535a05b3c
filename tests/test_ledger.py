import threading
from dataclasses import replace

import pytest

from hfbatch.errors import Conflict, Damage
from hfbatch.ledger import Ledger
from hfbatch.records import Agreed, Receipt, data_name, staged_name
from hfbatch.shards import Piece, Shard
from hfbatch.store import open_store

ONE, TWO = "1" * 64, "2" * 64


def shard(name, fingerprint="v", number=1):
    return Shard.of([Piece(name, fingerprint, 0, 10)], None, number)


def receipt(shard, generation=ONE, sha256="a"):
    return Receipt(shard.id, generation, data_name(shard.id, generation), 10, 3, sha256, {"too_long": 1})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_store(str(tmp_path / "out")))


def commit(ledger, shard, generation=ONE):
    made = receipt(shard, generation)
    ledger.store.put_if_absent(staged_name(made.data) if shard.staged else made.data, b"abc")
    return ledger.commit(made)


def test_a_new_output_has_nothing(ledger):
    assert (ledger.agreed(), ledger.success(), ledger.runs(), ledger.foreign()) == (None, None, [], [])
    assert ledger.committed(ONE) == set()


def test_the_same_cut_is_agreed_once_and_a_new_one_gets_the_next_number(ledger):
    first = ledger.agree(ONE, [shard("a")], None)
    assert first == Agreed(1, ONE, (shard("a"),)) == ledger.agreed()
    assert ledger.agree(ONE, [shard("a")], first) == first
    second = ledger.agree(ONE, [shard("a"), shard("b")], first)
    assert second.number == 2
    assert ledger.agreed() == second


def test_of_two_runs_with_different_cuts_the_later_is_refused(ledger):
    ledger.agree(ONE, [shard("a")], None)
    with pytest.raises(Conflict, match="another run has just begun"):
        ledger.agree(TWO, [shard("b")], None)


def test_two_runs_with_the_same_cut_agree(ledger):
    assert ledger.agree(ONE, [shard("a")], None) == ledger.agree(ONE, [shard("a")], None)


def test_a_shard_is_committed_when_record_and_object_are_both_there(ledger):
    whole, record_only, object_only, empty = shard("a"), shard("b"), shard("c"), shard("d")
    commit(ledger, whole)
    ledger.commit(receipt(record_only))
    ledger.store.put_if_absent(data_name(object_only.id, ONE), b"abc")
    ledger.commit(Receipt(empty.id, ONE, None, 0, 0, ""))
    commit(ledger, shard("e"), TWO)
    assert ledger.committed(ONE) == {whole.id, empty.id}


def test_the_first_of_many_commits_of_one_object_stands(ledger):
    ledger.store.put_if_absent(data_name(shard("a").id, ONE), b"abc")
    standing = []
    threads = [
        threading.Thread(
            target=lambda n=n: standing.append(
                ledger.commit(Receipt(**{**vars(receipt(shard("a"))), "run_id": str(n)}))
            )
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({found.run_id for found in standing}) == 1
    assert ledger.receipts(ONE, [shard("a").id]) == standing[:1]


def test_a_record_of_an_object_that_is_gone_gives_way_to_the_one_that_is_there(ledger):
    ledger.commit(receipt(shard("a"), sha256="gone"))
    assert ledger.commit(receipt(shard("a"), sha256="here")).sha256 == "here"
    assert ledger.receipts(ONE, [shard("a").id])[0].sha256 == "here"


def test_publishing_leaves_exactly_the_plans_objects_and_then_says_success(ledger):
    old, kept = shard("a", "old"), shard("b")
    first = ledger.agree(ONE, [old, kept], None)
    receipts = [commit(ledger, old), commit(ledger, kept)]
    ledger.publish("run1", first, receipts, {"outcome": "success"})
    assert ledger.success()["run_id"] == "run1"

    new = replace(shard("a", "new", number=2), staged=True)
    second = ledger.agree(ONE, [new, kept], first)
    ledger.reopen()
    assert ledger.success() is None
    receipts = [commit(ledger, new), receipts[1]]
    assert set(ledger.store.list("data")) == {data_name(old.id, ONE), data_name(kept.id, ONE)}, "yesterday's, untouched"
    assert ledger.committed(ONE) == {old.id, new.id, kept.id}
    ledger.publish("run2", second, receipts, {"outcome": "success"})
    assert set(ledger.store.list("data")) == {data_name(new.id, ONE), data_name(kept.id, ONE)}
    assert ledger.store.list("_hfbatch/staged") == []
    assert ledger.committed(ONE) == {new.id, kept.id}
    manifest = ledger.run_file("run2", "manifest.json")
    assert [entry["shard"] for entry in manifest["objects"]] == [new.id, kept.id]
    assert (manifest["rows"], manifest["plan"]) == (20, 2)
    pointer = {"run_id": "run2", "generation": ONE, "plan": 2, "manifest": "_hfbatch/runs/run2/manifest.json"}
    assert ledger.success() == ledger.current() == pointer


def test_a_late_clean_up_takes_nothing_of_a_newer_plan(ledger, monkeypatch):
    """The run of plan 1 falls asleep before it clears data/, plan 2 comes and publishes, then plan 1 wakes up."""
    first = ledger.agree(ONE, [shard("a")], None)
    receipts = [commit(ledger, shard("a"))]
    slept = []

    def overtake(name):
        if name == "before-swap" and not slept:
            slept.append(name)
            later = Ledger(ledger.store)
            second = later.agree(ONE, [shard("a", "new", number=2)], first)
            later.publish("run2", second, [commit(later, shard("a", "new", number=2))], {})

    monkeypatch.setattr("hfbatch.ledger.point", overtake)
    with pytest.raises(Conflict, match="another run has taken over"):
        ledger.publish("run1", first, receipts, {})
    assert ledger.store.list("data") == [data_name(shard("a", "new", number=2).id, ONE)]
    assert ledger.success()["run_id"] == ledger.current()["run_id"] == "run2"


def test_nothing_is_published_over_an_object_that_vanished(ledger):
    plan = ledger.agree(ONE, [shard("a")], None)
    receipts = [commit(ledger, shard("a"))]
    ledger.store.delete([receipts[0].data])
    with pytest.raises(Damage, match="1 committed objects have vanished"):
        ledger.publish("run1", plan, receipts, {})
    assert ledger.success() is None


@pytest.mark.parametrize("edit", [b'"rows": 10', b'"sha256": "a"'])
def test_an_edited_record_is_damage_that_names_its_place(ledger, edit):
    commit(ledger, shard("a"))
    (name,) = ledger.store.list("_hfbatch/commits")
    ledger.store.put(name, ledger.store.get(name).replace(edit, edit.replace(b"10", b"11").replace(b'"a"', b'"b"')))
    with pytest.raises(Damage, match=f"{shard('a').id}.json: was changed after it was written"):
        ledger.receipts(ONE, [shard("a").id])


def test_a_torn_plan_is_damage(ledger):
    ledger.agree(ONE, [shard("a")], None)
    (name,) = ledger.store.list("_hfbatch/plans")
    ledger.store.put(name, ledger.store.get(name)[:30])
    with pytest.raises(Damage, match="is not readable as JSON"):
        ledger.agreed()


def test_a_run_that_was_overtaken_does_not_publish(ledger):
    first = ledger.agree(ONE, [shard("a")], None)
    ledger.agree(TWO, [shard("a")], first)
    with pytest.raises(Conflict, match="another run has taken over"):
        ledger.publish("run1", first, [commit(ledger, shard("a"))], {})
    assert ledger.success() is None


def test_files_of_others_are_seen(ledger):
    ledger.store.put("data/notes.parquet", b"x")
    commit(ledger, shard("a"))
    assert ledger.foreign() == ["data/notes.parquet"]


def test_an_output_in_a_later_format_is_refused(ledger):
    ledger.store.put("_hfbatch/FORMAT.json", b'{"format": 99}')
    with pytest.raises(Conflict, match=r"format 99.*upgrade"):
        ledger.begin("run", ONE, {}, {})
