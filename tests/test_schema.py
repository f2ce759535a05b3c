"""The JSON schema that editors use: it takes every file that is shipped and refuses what `load` refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from jsonschema import Draft202012Validator

from hfbatch import tasks
from hfbatch.errors import SpecError
from hfbatch.load import load_job, load_machine
from hfbatch.schema import job_schema, machine_schema, schema
from hfbatch.spec import JobSpec, Machine

ROOT = Path(__file__).parent.parent
JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))
MACHINES = sorted((ROOT / "configs").rglob("*.yaml"))
JOB: dict[str, Any] = {
    "task": "text-classification",
    "model": {"id": "owner/name"},
    "input": {"path": "data/*.parquet"},
    "output": {"path": "out"},
}


class _Json(yaml.SafeLoader):
    """YAML 1.1 as editors see it: JSON's types, so no dates."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Json)


def accepts(which: dict[str, Any], value: object) -> bool:
    return bool(Draft202012Validator(which).is_valid(value))


def loads(load: Any, source: Path) -> bool:
    try:
        load(source)
    except SpecError:
        return False
    return True


def changed(key: str, value: object) -> dict[str, Any]:
    job = copy.deepcopy(JOB)
    node = job
    *sections, last = key.split(".")
    for part in sections:
        node = node.setdefault(part, {})
    node[last] = value
    return job


def test_there_are_shipped_files_to_check() -> None:
    assert JOBS
    assert MACHINES


@pytest.mark.parametrize("make", [job_schema, machine_schema, schema])
def test_the_schema_is_a_valid_schema(make: Any) -> None:
    Draft202012Validator.check_schema(make())
    assert make()["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_job_loads_and_fits_the_schema(path: Path) -> None:
    assert load_job(path, vars={"day": "2026-11-20"})
    Draft202012Validator(job_schema()).validate(read(path))
    Draft202012Validator(schema()).validate(read(path))
    assert not accepts(machine_schema(), read(path))


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_machine_loads_and_fits_the_schema(path: Path) -> None:
    assert load_machine(path)
    Draft202012Validator(machine_schema()).validate(read(path))
    Draft202012Validator(schema()).validate(read(path))
    assert not accepts(job_schema(), read(path))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model.revision", "7140000"),
        ("model.revision", "1.50"),
        ("model.revision", "no"),
        ("model.revision", "null"),
        ("model.dtype", "${dtype}"),
        ("errors.max_failed_rows", "${n}"),
        ("input.limit", "'5'"),
        ("input.limit", "5"),
        ("input.path", "[a, 5]"),
        ("input.columns", "{text: 5}"),
        ("input.keep", "all"),
        ("errors.max_failed_fraction", "1e-3"),
        ("errors.max_failed_fraction", "${share}"),
        ("model.trust_remote_code", "${n}"),
        ("model.trust_remote_code", "off"),
        ("model.trust_remote_code", "'off'"),
        ("params.truncation", "${n}"),
        ("vars.day", "2026-11-20"),
        ("task", "sentiment-analysis"),
        ("task", "${task}"),
        ("name", "5"),
    ],
)
def test_schema_and_load_take_the_same_spellings(tmp_path: Path, key: str, text: str) -> None:
    path = tmp_path / "job.yaml"
    written = changed(key, "VALUE")
    written.setdefault("vars", {}).update(n="0", dtype="auto", share="0.5", task="fill-mask")
    path.write_text(yaml.safe_dump(written).replace("VALUE", text))
    assert load_job(path)
    Draft202012Validator(job_schema()).validate(read(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.revison", "x"),
        ("model.dtype", "float23"),
        ("revision", "x"),
        ("input.limit", "many"),
        ("input.limit", 0),
        ("input.limit", 1.5),
        ("input.path", []),
        ("input.path", {"a": "b"}),
        ("input.keep", "some"),
        ("input.columns", ["a"]),
        ("output.path", None),
        ("errors.policy", "ignore"),
        ("errors.max_failed_fraction", 2),
        ("params.topk", 1),
        ("params.top_k", 0),
        ("params.pooling", "mean"),
        ("task", "text-clasification"),
        ("name", "a b"),
    ],
)
def test_schema_and_load_refuse_the_same_mistakes(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    assert not loads(load_job, path)
    assert not accepts(job_schema(), read(path))
    assert not accepts(schema(), read(path))


@pytest.mark.parametrize("missing", JOB)
def test_a_job_without_a_required_section_is_refused(missing: str) -> None:
    assert not accepts(job_schema(), {key: value for key, value in JOB.items() if key != missing})
    assert accepts(job_schema(), JOB)


def test_steps_stand_in_place_of_task_and_model_and_each_has_its_own_params() -> None:
    step = {"name": "a", "task": "ner", "model": {"id": "owner/name"}, "params": {"aggregation_strategy": "simple"}}
    rest = {name: JOB[name] for name in ("input", "output")}
    assert accepts(job_schema(), rest | {"steps": [step, step | {"name": "b", "where": "a_entities is not None"}]})
    assert not accepts(job_schema(), rest | {"steps": [step | {"params": {"pooling": "mean"}}]})
    assert not accepts(job_schema(), rest | {"steps": [{"name": "a", "task": "ner"}]})


@pytest.mark.parametrize(
    ("machine", "fits"),
    [
        ({"actors": 4}, True),
        ({"actors": {"max": 4}}, True),
        ({"actors": {"min": 4}}, False),
        ({"actors": "many"}, False),
        ({"actors": "${n}"}, False),
        ({"max_batch_token": 4}, False),
        ({"cpu_steps": "tasks"}, True),
        ({"compile": "yes"}, True),
    ],
)
def test_a_machine_fits_the_schema_where_it_loads(tmp_path: Path, machine: dict[str, Any], fits: bool) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump(machine))
    assert (accepts(machine_schema(), read(path)), loads(load_machine, path)) == (fits, fits)


@pytest.mark.parametrize("task", tasks.all(), ids=lambda task: task.name)
def test_every_name_of_a_task_brings_its_own_params(task: Any) -> None:
    known = next(iter(task.Params.model_fields), None)
    section = job_schema()["$defs"][f"params-{task.name}"]
    for name in (task.name, *task.aliases):
        assert accepts(job_schema(), {**JOB, "task": name, "params": {}})
        assert not accepts(job_schema(), {**JOB, "task": name, "params": {"no_such_parameter": 1}})
    assert section["additionalProperties"] is False
    if known is not None:  # some take none
        assert section["properties"][known]["description"] == task.Params.model_fields[known].description


def test_every_task_is_offered_with_a_description() -> None:
    choices = job_schema()["properties"]["task"]["anyOf"][:-1]
    offered = {choice["const"]: choice["description"] for choice in choices if "const" in choice}
    assert set(offered) == {name for task in tasks.all() for name in (task.name, *task.aliases)}
    assert all(offered.values())


@pytest.mark.parametrize("model", [JobSpec, Machine])
def test_every_key_has_a_description_to_hover_over(model: Any) -> None:
    whole = job_schema() if model is JobSpec else machine_schema()
    assert set(whole["properties"]) == set(model.model_fields)
    for name, section in {"": whole, **whole["$defs"]}.items():
        assert section["description"], name
        for key, described in section["properties"].items():
            part = whole["$defs"].get(described.get("$ref", "").rpartition("/")[2], {})
            said = described.get("description") or part.get("description")
            assert said, (name, key)
            assert "title" not in described


def test_no_section_takes_an_unknown_key() -> None:
    for whole in (job_schema(), machine_schema()):
        assert all(section["additionalProperties"] is False for section in (whole, *whole["$defs"].values()))
