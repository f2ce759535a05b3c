"""`hfbatch gc`: what nobody needs goes, what anybody needs stays, beside a live run too."""

import json
import os
import time
from collections import Counter

import pytest

import hfbatch
from hfbatch import faults
from hfbatch.errors import SpecError
from hfbatch.examine import examine
from hfbatch.faults import POINTS, InjectedFault
from hfbatch.garbage import collect, find_garbage
from hfbatch.lease import Lease
from hfbatch.planner import make_plan
from hfbatch.records import data_name, staged_name
from tests.console import assert_tidy, command_in_this_process
from tests.inline import plan_of
from tests.outputs import copied, plan_again, runs_in_this_process

DURING_THE_SWAP = {"before-promote"}  # the only step at which data/ lacks rows: what is superseded left, nothing came


@pytest.fixture
def output(made, tmp_path):
    return copied(made, tmp_path)


def names(output):
    return [each.name for each in find_garbage(str(output.path))]


def put(output, name, content=b"x"):
    output.ledger.store.put(name, content)
    return name


def shard(number):
    return f"{number:06d}-{'0' * 16}"


def test_a_tidy_output_has_none(output):
    before = output.state()
    assert collect(str(output.path)) == []
    assert output.state() == before


def test_what_the_ruling_plan_could_know_and_does_not_goes_with_records_first(output, monkeypatch):
    generation = output.ledger.agreed().generation
    data = data_name(shard(1), generation)
    dead = [
        put(output, name) for name in (data, staged_name(data), f"_hfbatch/commits/{generation[:8]}/{shard(1)}.json")
    ]
    deleted = []
    store = type(output.ledger.store)
    real = store.delete
    monkeypatch.setattr(store, "delete", lambda self, found: deleted.extend(found) or real(self, found))
    gone = collect(str(output.path))
    assert sorted(each.name for each in gone) == sorted(dead)
    assert {(each.nbytes, each.why) for each in gone} == {(1, "superseded")}
    assert deleted[0].startswith("_hfbatch/commits/")
    examine(str(output.path)).check()


def test_what_a_later_plan_may_know_stays(output):
    generation = output.ledger.agreed().generation
    data = data_name(shard(2), generation)
    for name in (data, staged_name(data), f"_hfbatch/commits/{generation[:8]}/{shard(2)}.json"):
        put(output, name)
    assert names(output) == []


def test_before_a_plan_is_published_what_it_builds_on_and_what_readers_count_on_stays(output):
    before = output.state()
    _, failing = plan_again(output)
    assert names(output) == []
    (output.path / "_hfbatch/CURRENT").unlink()  # readers count on nothing; the new plan still carries rows over
    assert names(output) == []
    with runs_in_this_process():
        assert hfbatch.retry(str(output.path)).rows_new == 3
    assert not {shard for shard in failing for name in output.state() if shard in str(name)}
    assert names(output) == []
    assert len(output.state()) > len(before)


def test_what_readers_count_on_stays_though_the_new_plan_has_no_use_for_it(output):
    plan = make_plan(*spec_and_machine(output), redo=[shard.id for shard in output.ledger.agreed().shards])
    output.ledger.agree(plan.job.generation, plan.shards, plan.agreed)
    assert names(output) == []
    (output.path / "_hfbatch/CURRENT").unlink()
    assert len(names(output)) == 2 * len(output.objects)  # each with its record


def spec_and_machine(output):
    plan = plan_of(output.job)
    return plan.spec, plan.machine


def test_a_staged_object_that_was_published_goes_and_one_that_waits_stays(output):
    name = f"data/{output.objects[0].name}"
    put(output, staged_name(name), output.objects[0].read_bytes())
    assert names(output) == [staged_name(name)]
    (output.path / "_hfbatch/CURRENT").unlink()
    assert names(output) == []


def test_old_plans_go_and_the_newest_stay(output):
    plan = output.ledger.agreed()
    for number in range(2, 6):
        put(output, f"_hfbatch/plans/{number:09d}.json", plan.to_json())
    assert names(output) == ["_hfbatch/plans/000000001.json", "_hfbatch/plans/000000002.json"]
    collect(str(output.path))
    assert output.ledger.agreed().shards == plan.shards


def test_probes_and_leases_go_unless_their_run_lives(output):
    probe = put(output, "_hfbatch/probe/abc")
    lease = Lease(output.ledger.store, "other", "job")
    lease.about = {**lease.about, "host": "elsewhere/1"}
    with lease:
        assert names(output) == []
        put(output, "_hfbatch/lease.json", json.dumps({**lease.about, "renewed": time.time() - 3600}).encode())
        assert names(output) == ["_hfbatch/lease.json", probe]


def test_half_written_files_go_after_a_day(output):
    fresh, old = (output.path / "_hfbatch/tmp" / name for name in ("fresh", "old"))
    for file in (fresh, old):
        file.write_bytes(b"xyz")
    os.utime(old, (time.time() - 90_000,) * 2)
    (gone,) = collect(str(output.path))
    assert (gone.name, gone.nbytes) == ("_hfbatch/tmp/old", 3)
    assert fresh.exists()
    assert not old.exists()


def test_the_history_stays(output):
    runs = {file for file in output.state() if "runs" in file.parts}
    collect(str(output.path))
    assert runs
    assert runs <= set(output.state())


def test_the_command_tells_names_and_bytes_and_a_dry_run_removes_nothing(output, capsys):
    command = command_in_this_process(capsys)
    name = put(output, staged_name(data_name(shard(1), output.ledger.agreed().generation)), b"x" * 2000)
    before = output.state()
    code, out, err = command("gc", output.path, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split() == [name, "2.0", "KiB", "superseded"]
    assert out.endswith("\n1 object, 2.0 KiB, would be removed\n")
    assert_tidy(out)
    assert output.state() == before
    found = json.loads(command("gc", output.path, "--json")[1])
    assert found == {"removed": True, "objects": [{"name": name, "nbytes": 2000, "why": "superseded"}]}
    assert command("gc", output.path) == (0, "nothing to remove\n", "")


def test_a_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(SpecError, match="holds no output of hfbatch"):
        collect(str(tmp_path))


@pytest.mark.parametrize("point", sorted(POINTS - {"before-inference", "after-inference"}))
def test_wherever_a_run_dies_there_is_no_damage_and_what_gc_takes_is_not_missed(output, monkeypatch, point):
    monkeypatch.setattr(faults, "_passed", Counter())
    with runs_in_this_process():
        with monkeypatch.context() as patch:
            patch.setenv("HFBATCH_FAULT", f"{point}:raise")
            with pytest.raises(InjectedFault):
                hfbatch.retry(str(output.path))
        assert examine(str(output.path)).flaws == ()
        rows = sorted(map(str, output.table()["text"].to_pylist()))
        collect(str(output.path))
        found = examine(str(output.path))
        assert found.flaws == ()
        if point not in DURING_THE_SWAP:
            assert sorted(map(str, output.table()["text"].to_pylist())) == rows
            assert len(rows) == 50
        hfbatch.run(plan_of(output.job))
    assert hfbatch.verify(str(output.path)).rows == output.table().num_rows == 50
    assert names(output) == []
