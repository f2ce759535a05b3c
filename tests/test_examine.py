"""`hfbatch verify`: every kind of flaw is found, told with its place and its cure, and nothing that is fine is one."""

import hashlib
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch.errors import Conflict, Damage, Incomplete, SpecError
from hfbatch.examine import examine
from hfbatch.records import Receipt
from tests.console import assert_tidy, command_in_this_process
from tests.outputs import copied, flip_a_bit, plan_again


@pytest.fixture
def output(made, tmp_path):
    return copied(made, tmp_path)


@pytest.fixture
def hfbatch(capsys):
    return command_in_this_process(capsys)


def flaws(output):
    return examine(str(output.path)).flaws


def test_a_finished_output_is_sound_and_stays_as_it_is(output):
    before = output.state()
    found = examine(str(output.path))
    assert (found.shards, found.committed, found.complete, found.rows, found.flaws) == (4, 4, True, 50, ())
    assert found.nbytes == sum(file.stat().st_size for file in output.objects)
    found.check()
    assert output.state() == before


def reseal(record, **changes):
    """The record with other content and a checksum that fits it."""
    receipt = Receipt.from_json(record.read_bytes())
    record.write_bytes(Receipt(**{**vars(receipt), **changes}).to_json())


def record_of(output, file):
    return next(record for record in output.records if record.stem in file.name)


def swap_rows(output):
    """An object that reads well and fits its record, but is that of another shard."""
    first, second = output.objects[:2]
    second.write_bytes(first.read_bytes())
    original = Receipt.from_json(record_of(output, first).read_bytes())
    same = {name: getattr(original, name) for name in ("sha256", "nbytes", "rows", "errors")}
    reseal(record_of(output, second), **same)


def rewrite(output, change):
    """The first object with other rows, and a record that fits its bytes."""
    file = output.objects[0]
    table = pq.read_table(file)
    pq.write_table(change(table), file, write_page_checksum=True)
    content = file.read_bytes()
    record = record_of(output, file)
    reseal(record, sha256=hashlib.sha256(content).hexdigest(), nbytes=len(content))


def not_parquet(output):
    """Bytes that fit their record, and are no Parquet file."""
    file = output.objects[0]
    file.write_bytes(b"x" * 99)
    record = record_of(output, file)
    reseal(record, nbytes=99, sha256=hashlib.sha256(b"x" * 99).hexdigest())


def of_another_generation(output):
    name = next((output.path / "_hfbatch/gens").iterdir())
    name.write_text(json.dumps({"generation": "0" * 64, "identity": {"task": "fill-mask"}}))


def superseded(output):
    name = output.objects[0].name
    (output.path / "data" / f"000001-{'0' * 16}-{name[-16:-8]}.parquet").write_bytes(b"x")


def manifest_of(output):
    return output.path / json.loads((output.path / "_hfbatch/CURRENT").read_text())["manifest"]


DAMAGES = {
    "bit": (lambda o: flip_a_bit(o.objects[0]), "shard", r"data/.*: was changed after it was written \(its sha256"),
    "cut": (lambda o: o.objects[0].write_bytes(b"x"), "shard", "data/.*: has 1 bytes, its record says"),
    "gone": (lambda o: o.objects[0].unlink(), "shard", "data/.*: is gone"),
    "record gone": (lambda o: o.records[0].unlink(), "shard", "commits/.*: is gone, and its shard was committed"),
    "record edited": (
        lambda o: o.records[0].write_text(o.records[0].read_text().replace('"rows": 1', '"rows": 2')),
        "shard",
        "commits/.*: was changed after it was written",
    ),
    "record torn": (lambda o: o.records[0].write_bytes(b"{"), "shard", "commits/.*: is not readable as JSON"),
    "record of another": (
        lambda o: o.records[0].write_bytes(o.records[1].read_bytes()),
        "shard",
        "commits/.*: is the record of another shard",
    ),
    "rows of another": (swap_rows, "shard", "data/.*: is of shard"),
    "rows added": (
        lambda o: rewrite(o, lambda t: pa.concat_tables([t, t.slice(0, 1)])),
        "shard",
        r"data/.*: has \d+ rows, its record says",
    ),
    "errors hidden": (
        lambda o: rewrite(o, lambda t: t.set_column(t.schema.get_field_index("error"), "error", [["odd: x"] * len(t)])),
        "shard",
        "data/.*: has .* failed rows, its record says",
    ),
    "column renamed": (
        lambda o: rewrite(o, lambda t: t.rename_columns({"text": "words"}).replace_schema_metadata(t.schema.metadata)),
        "shard",
        "data/.*: has other columns than its generation",
    ),
    "not parquet": (not_parquet, "shard", r"data/.*: cannot be read \(ArrowInvalid"),
    "FORMAT gone": (lambda o: (o.path / "_hfbatch/FORMAT.json").unlink(), "object", "FORMAT.json: is gone"),
    "generation": (of_another_generation, "object", "gens/.*: is not what the plan's generation is"),
    "CURRENT torn": (lambda o: (o.path / "_hfbatch/CURRENT").write_text("{"), "object", "CURRENT: is not readable"),
    "_SUCCESS torn": (lambda o: (o.path / "_SUCCESS").write_text("no"), "object", "_SUCCESS: is not readable"),
    "CURRENT gone": (
        lambda o: (o.path / "_hfbatch/CURRENT").unlink(),
        "publication",
        "CURRENT: does not name the plan that _SUCCESS names",
    ),
    "manifest gone": (lambda o: manifest_of(o).unlink(), "publication", "manifest.json: is gone"),
    "manifest edited": (
        lambda o: manifest_of(o).write_text(manifest_of(o).read_text().replace('"rows": 1', '"rows": 3')),
        "publication",
        "the manifest it names is not that of what is committed",
    ),
    "superseded": (superseded, "publication", "data/.*: is superseded, and its rows are there twice"),
    "foreign": (lambda o: (o.path / "data/x.parquet").write_bytes(b"x"), "foreign", "x.parquet: is not hfbatch's"),
    "plan torn": (
        lambda o: (o.path / "_hfbatch/plans/000000001.json").write_text("{}"),
        "plan",
        "plans/000000001.json: was changed .*without the plan",
    ),
    "plan gone": (lambda o: (o.path / "_hfbatch/plans/000000001.json").unlink(), "plan", "plans: is empty"),
    "no plan": (
        lambda o: (o.path / "_hfbatch/plans/zz.txt").write_text("hi"),
        "foreign",
        "zz.txt: is no plan of hfbatch",
    ),
}


RESEALED = {"rows of another", "rows added", "errors hidden", "column renamed", "not parquet"}


@pytest.mark.parametrize("case", DAMAGES)
def test_each_damage_is_one_flaw_with_its_place_and_its_cure(output, case):
    damage, kind, told = DAMAGES[case]
    damage(output)
    flaw, *others = flaws(output)
    assert flaw.kind == kind
    assert [other.kind for other in others] == ["publication"] * (case in RESEALED)  # the manifest has the old sums
    assert re.search(told, str(flaw)), str(flaw)
    assert str(output.path) in flaw.place
    assert "fix: `hfbatch repair`" in str(flaw) or kind == "foreign"
    with pytest.raises(Damage, match=re.escape(f"{output.path}: {1 + len(others)} flaw")):
        examine(str(output.path)).check()


def test_all_flaws_are_told_together(output):
    flip_a_bit(output.objects[0])
    output.objects[1].unlink()
    (output.path / "data/x.parquet").write_bytes(b"x")
    with pytest.raises(Damage) as raised:
        examine(str(output.path)).check()
    assert str(raised.value).count("fix: ") == 3
    assert str(raised.value).endswith(": 3 flaws")


def test_what_is_only_unfinished_is_no_damage(output):
    (output.path / "_SUCCESS").unlink()
    found = examine(str(output.path))
    assert (found.complete, found.flaws) == (False, ())
    with pytest.raises(Incomplete, match="not published: 4 of 4 shards are committed, and sound"):
        found.check()
    (output.path / "_hfbatch/CURRENT").unlink()
    output.records[0].unlink()
    with pytest.raises(Incomplete, match="not complete: 3 of 4 shards"):
        examine(str(output.path)).check()


def test_objects_that_a_newer_plan_replaces_may_stand_until_it_is_published(output):
    again, failing = plan_again(output)
    found = examine(str(output.path))
    assert (found.complete, found.committed, found.flaws) == (False, len(again.shards) - len(failing), ())


def test_a_shard_that_builds_on_a_damaged_one_is_told(output):
    again, failing = plan_again(output)
    flip_a_bit(next(file for file in output.objects if failing[0] in file.name))
    (flaw,) = flaws(output)
    assert flaw.subject in {shard.id for shard in again.shards if shard.base == failing[0]}


def test_a_folder_that_is_no_output_and_one_of_a_later_format_are_refused(output, tmp_path):
    with pytest.raises(SpecError, match="holds no output of hfbatch"):
        examine(str(tmp_path / "in"))
    (output.path / "_hfbatch/FORMAT.json").write_text('{"format": 2}')
    with pytest.raises(Conflict, match="written in format 2; upgrade hfbatch"):
        examine(str(output.path))


def test_the_command_ends_with_0_4_or_6(hfbatch, output):
    code, out, err = hfbatch("verify", output.path)
    assert (code, err) == (0, "")
    assert re.search(r"^state +complete and sound$", out, re.MULTILINE)
    assert_tidy(out)
    (output.path / "_SUCCESS").unlink()
    code, out, err = hfbatch("verify", output.path)
    assert code == 4
    assert "not published: 4 of 4 shards" in err
    flip_a_bit(output.objects[0])
    code, out, err = hfbatch("verify", output.path, "--json")
    found = json.loads(out)
    assert (code, found["exit_code"], found["error"]["type"], len(found["flaws"])) == (6, 6, "Damage", 1)
    assert found["flaws"][0]["place"] in err
