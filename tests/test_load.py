"""Job and machine files: what is read, what is refused, and what a person is told."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hfbatch.errors import Problem, SpecError
from hfbatch.load import load_job, load_machine, split_overrides
from hfbatch.modelspec import ModelSpec
from hfbatch.spec import ErrorsSpec, InputSpec, JobSpec, Machine, OutputSpec

JOB: dict[str, Any] = {
    "task": "text-classification",
    "model": {"id": "owner/name"},
    "input": {"path": "data/*.parquet"},
    "output": {"path": "out"},
}
TEXT = """\
task: text-classification
model:
  id: owner/name
input:
  path: data/*.parquet
output:
  path: out
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a file below the working folder and gives its relative name."""
    monkeypatch.chdir(tmp_path)

    def put(text: str | bytes, name: str = "job.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return put


def problems(source: Any, load: Any = load_job, **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        load(source, **options)
    return caught.value.problems


def only(source: Any, load: Any = load_job, **options: Any) -> Problem:
    (problem,) = problems(source, load, **options)
    return problem


def job_with(**sections: Any) -> dict[str, Any]:
    return {
        key: {**JOB.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in {**JOB, **sections}.items()
    }


def test_a_file_becomes_a_job_named_after_it(write: Any) -> None:
    job = load_job(write(TEXT, "jobs/nightly reviews.yaml"))
    assert job.name == "nightly-reviews"
    assert (job.model.id, job.input.path, job.output.path) == ("owner/name", "data/*.parquet", "out")


def test_a_mapping_becomes_a_job_and_is_left_as_it_was() -> None:
    source = job_with(input={"path": [Path("a"), "${x}"]}, vars={"x": "b"})
    assert load_job(source).input.paths == ["a", "b"]
    assert load_job(source).name == "job"
    assert source["input"]["path"][1] == "${x}"


def test_the_written_example_of_the_design_loads(write: Any) -> None:
    text = TEXT.replace("  id: owner/name\n", "  id: owner/name\n  revision: 714eb0f\n  attn_implementation: null\n")
    job = load_job(write(text + "params: {top_k: 1}\nvars: {day: 2026-11-20}\n"))
    assert job.model.revision == "714eb0f"
    assert job.params == {"top_k": 1}
    assert job.vars == {"day": "2026-11-20"}


@pytest.mark.parametrize(
    "text", ["7140000", "0012", "1e10", "no", "2026-11-20", "0x1f", "1_000", "'null'", "NULL", ".5"]
)
def test_a_text_key_keeps_the_text_that_was_written(write: Any, text: str) -> None:
    job = load_job(write(TEXT.replace("id: owner/name", f"id: owner/name\n  revision: {text}")))
    assert job.model.revision == text.strip("'")


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_only_plain_null_tilde_and_nothing_are_null(write: Any, text: str) -> None:
    assert load_job(write(TEXT.replace("id: owner/name", f"id: owner/name\n  revision: {text}"))).model.revision is None


def test_texts_become_what_their_key_takes(write: Any) -> None:
    job = load_job(write(TEXT + "errors: {max_failed_fraction: 0.5, max_failed_rows: 5}\nparams: {top_k: 3}\n"))
    assert (job.errors.max_failed_fraction, job.errors.max_failed_rows, job.params) == (0.5, 5, {"top_k": 3})


@pytest.mark.parametrize(("text", "actors"), [("auto", "auto"), ("4", 4), ("{min: 1, max: 4}", {"min": 1, "max": 4})])
def test_a_union_takes_each_of_its_forms(write: Any, text: str, actors: object) -> None:
    assert load_machine(write(f"actors: {text}\n")).model_dump()["actors"] == actors


def test_an_alias_is_stored_as_the_task_it_means() -> None:
    assert load_job({**JOB, "task": "sentiment-analysis"}).task == "text-classification"


def test_params_keep_only_what_was_written() -> None:
    assert load_job({**JOB, "params": {"top_k": "3"}}).params == {"top_k": 3}
    assert load_job(JOB).params == {}


def test_the_origin_stays_with_the_spec_and_points_at_keys(write: Any) -> None:
    job = pickle.loads(pickle.dumps(load_job(write(TEXT), overrides={"output.path": "x"})))
    assert job.origin.problem(("input", "path"), "no such file").place == "job.yaml:5:3"
    assert job.origin.problem(("output", "path"), "exists").place == "--set output.path"
    assert job.origin.problem(("input", "where"), "no column").place == "job.yaml:4:1"


def test_an_unknown_key_is_rendered_with_its_line_and_the_key_that_is_meant(write: Any) -> None:
    name = write(TEXT.replace("owner/name\n", "owner/name\n  dtype: auto\n  revison: main\n"), "jobs/reviews.yaml")
    with pytest.raises(SpecError) as caught:
        load_job(name)
    assert str(caught.value) == (
        "jobs/reviews.yaml:5:3: model.revison: unknown key\n 5 |   revison: main\n   |   ^ fix: write 'revision'"
    )


def test_four_mistakes_are_one_message_with_four_places_in_order(write: Any) -> None:
    text = (
        "task: text-clasification\nmodel:\n  id: a/b\n  revison: main\ninput: {path: x, limit: many}\n"
        "output: {path: y}\nerrors: {policy: skp}\n"
    )
    found = problems(write(text))
    assert [problem.place for problem in found] == ["job.yaml:1:1", "job.yaml:4:3", "job.yaml:5:18", "job.yaml:7:10"]
    assert [problem.key for problem in found] == ["task", "model.revison", "input.limit", "errors.policy"]


def test_form_and_content_are_told_together(write: Any) -> None:
    found = problems(write(TEXT + "task: fill-mask\nvars: {a: &x b, c: *x}\nparms: {}\n"))
    assert [problem.message.partition(",")[0] for problem in found] == [
        "duplicate key", "anchors are not read: &x", "aliases are not read: *x", "unknown key",
    ]  # fmt: skip
    assert "first written in line 1" in found[0].message


@pytest.mark.parametrize(
    ("source", "key", "message", "fix"),
    [
        ({**JOB, "revision": "x"}, "revision", "unknown key", "it belongs under model"),
        ({**JOB, "path": "x"}, "path", "unknown key", "it belongs under input or output"),
        ({**JOB, "top_k": "3"}, "top_k", "unknown key", "it belongs under params"),
        ({**JOB, "actors": "3"}, "actors", "unknown key", "it belongs in a machine file (--on)"),
        (job_with(model={"vars": {}}), "model.vars", "unknown key", "it belongs at the top level"),
        (job_with(output={"zzz": "1"}), "output.zzz", "unknown key", "the keys here are path, prefix, partition_by"),
        (job_with(input={"LIMIT": "1"}), "input.LIMIT", "unknown key", "write 'limit'"),
        (job_with(params={"topk": "1"}), "params.topk", "unknown parameter", "write 'top_k'"),
        (job_with(params={"dtype": "1"}), "params.dtype", "unknown parameter", "it belongs under model"),
        (job_with(params={"top_k": "0"}), "params.top_k", "must be greater than 0, got '0'", None),
        (job_with(params={"function_to_apply": "sofmax"}), "params.function_to_apply",
         "expected 'none', 'softmax' or 'sigmoid', got 'sofmax'", "write 'softmax'"),
        (job_with(params=None), "params", "expected a mapping (key: value), got null",
         "leave the line out for the default"),
        ({**JOB, "task": "text-clasification"}, "task", "no task 'text-clasification'", "write 'text-classification'"),
        ({**JOB, "task": "zzz"}, "task", "no task 'zzz'", "`hfbatch tasks` lists them"),
        ({**JOB, "model": "owner/name"}, "model", "expected a mapping (key: value), got 'owner/name'",
         "write {id: owner/name}"),
        (job_with(model={"id": ""}), "model.id", "must not be empty, got ''", None),
        (job_with(model={"revision": 714}), "model.revision", "expected text, got 714 (int)",
         "write it in quotes: '714'"),
        (job_with(model={"dtype": "floot16"}), "model.dtype",
         "expected 'auto', 'float32', 'bfloat16' or 'float16', got 'floot16'", "write 'float16'"),
        (job_with(model={"trust_remote_code": "maybe"}), "model.trust_remote_code",
         "expected true or false, got 'maybe'", None),
        (job_with(input={"path": {"str": "x"}}), "input.path", "expected text or a list, got a mapping", None),
        (job_with(input={"path": []}), "input.path", "must not be empty", None),
        (job_with(input={"path": ["a", None]}), "input.path.1", "expected text, got null", None),
        (job_with(input={"keep": "al"}), "input.keep", "expected 'all' or a list, got 'al'", "write 'all'"),
        (job_with(input={"keep": "a, b"}), "input.keep", "expected 'all' or a list, got 'a, b'", "write [a, b]"),
        (job_with(input={"limit": "16,384"}), "input.limit", "expected a whole number, got '16,384'", "write 16384"),
        (job_with(input={"columns": ["a"]}), "input.columns", "expected a mapping (key: value), got a list",
         "write {key: value}"),
        (job_with(output={"prefix": ["p_"]}), "output.prefix", "expected text, got a list",
         "write 'p_', without brackets"),
        ({**JOB, "errors": {"max_failed_fraction": "2"}}, "errors.max_failed_fraction", "must be at most 1, got '2'",
         None),
        ({**JOB, "name": "a b"}, "name",
         "may hold letters, digits, '.', '_' and '-' only, a letter or digit first, got 'a b'", None),
        ({**JOB, 1: "x"}, "", "the key 1 (int) is not text", "write '1'"),
    ],
)  # fmt: skip
def test_a_problem_names_key_value_and_what_to_write(source: Any, key: str, message: str, fix: str | None) -> None:
    problem = only(source)
    assert (problem.key, problem.message, problem.fix) == (key, message, fix)
    assert problem.place == (key or "job")


@pytest.mark.parametrize(
    ("source", "key", "message", "fix"),
    [
        ({"actors": "0"}, "actors", "must be greater than 0, got '0'", "or write 'auto'"),
        ({"actors": "many"}, "actors", "expected 'auto', a whole number or a mapping (key: value), got 'many'", None),
        ({"actors": {"min": "1"}}, "actors.max", "missing (actors at most)", "write 'max: 8'"),
        ({"actors": {"min": "3", "max": "1"}}, "actors", "min 3 is over max 1", None),
        ({"actors": {"max": "x"}}, "actors.max", "expected a whole number, got 'x'", None),
        ({"gpus_per_actor": "atuo"}, "gpus_per_actor", "expected 'auto' or a number, got 'atuo'", "write 'auto'"),
        ({"shard_rows": None}, "shard_rows", "expected a whole number, got null",
         "leave the line out for the default (16384)"),
        ({"limit": "4"}, "limit", "unknown key", "it belongs in the job file, under input"),
        ({"task": "x"}, "task", "unknown key", "it belongs in the job file"),
        ({"address": "ray://${HOST}"}, "address", "no variable 'HOST'",
         "a machine file has no variables; write the value, or give it with --set"),
    ],
)  # fmt: skip
def test_a_problem_of_a_machine_is_one_for_each_key(source: Any, key: str, message: str, fix: str | None) -> None:
    problem = only(source, load_machine)
    assert (problem.key, problem.message, problem.fix) == (key, message, fix)


def test_a_missing_key_is_shown_by_example_at_its_section(write: Any) -> None:
    problem = only(write(TEXT.replace("  id: owner/name", "  dtype: auto")))
    assert (problem.place, problem.key) == ("job.yaml:2:1", "model.id")
    assert problem.message == "missing (Hub id (owner/name) or a local directory)"
    assert problem.fix == "write 'id: distilbert/distilbert-base-uncased-finetuned-sst-2-english'"


def test_a_misspelt_required_key_is_not_called_missing_as_well() -> None:
    assert only({**{key: JOB[key] for key in JOB if key != "task"}, "tsk": "x"}).fix == "write 'task'"


def test_everything_but_params_is_checked_for_an_unknown_task() -> None:
    found = problems({**JOB, "task": "nothing-such", "params": {"topk": 1}, "limit": 1})
    assert [problem.key for problem in found] == ["task", "limit"]


@pytest.mark.parametrize("text", ["*.parquet", "a: b", "[a, b", "'x", "@x", "\t- a", "%x"])
def test_a_syntax_error_has_line_column_and_a_remedy(write: Any, text: str) -> None:
    problem = only(write(f"task: x\ninput:\n  path: {text}\n"))
    assert problem.place.startswith("job.yaml:3:")
    assert problem.message.startswith("not YAML: ")
    assert problem.fix
    assert problem.excerpt


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "too large": (b"a: " + b"x" * 300_000, "larger than 256 KiB"),
    "deep flow": ("a: " + "[" * 100_000, "deeper than 32 levels"),
    "deep block": ("".join(f"{' ' * depth}a:\n" for depth in range(200)), "deeper than 32 levels"),
    "deep keys": ("? " * 50_000, "a key must be plain text"),
    "billion laughs": (
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "aliases are not read: *a",
    ),
    "variables": (f"vars: {{a: {'x' * 100_000}}}\nname: {'${a}' * 30_000}\n", "variables add more than"),
    "unknown keys": ("".join(f"taks{number}: 1\n" for number in range(15_000)), "more problems"),
    "duplicates": ("task: 1\n" * 20_000, "duplicate key, first written in line 1"),
    "unknown variables": ("name: " + "${x}" * 60_000, "no variable 'x'"),
    "many nodes": ("input: [" + "a," * 130_000 + "]", "more than 20,000 values"),
    "python object": ("a: !!python/object/apply:os.system [ls]", "tags are not read"),
    "local tag": ("a: !x b", "tags are not read: '!x'"),
    "set tag": ("!!set {a, b}", "tags are not read"),
    "merge": ("<<: {a: b}", "merge keys are not read"),
    "self alias": ("&a {b: *a}", "anchors are not read: &a"),
    "list key": ("[a]: b", "a key must be plain text"),
    "mapping key": ("? {a: b}\n: c", "a key must be plain text"),
    "alias key": ("a: &x b\n*x : c", "a key must be plain text"),
    "no key": ("a:\n  : b", "not YAML"),
    "empty key": ("? \n: b", "no key before ':'"),
    "null key": ("~: b", "no key before ':'"),
    "escape in key": ('"\\e[2J": b', "a key must be printable text"),
    "long key": ("? " + "k" * 900 + "\n: b", "a key must be printable text"),
    "duplicate": ("task: a\ntask: b", "duplicate key, first written in line 1"),
    "two documents": ("a: b\n---\nc: d", "a second document begins here"),
    "empty": ("", "the file is empty"),
    "comment": ("# nothing\n", "the file is empty"),
    "null": ("~\n", "the file is empty"),
    "list": ("- a\n- b\n", "the file is a list, not keys with values"),
    "text": ("hello", "the file is 'hello', not keys with values"),
    "latin": ("task: caf\xe9".encode("latin-1"), "byte 0xe9 is not UTF-8"),
    "utf-16": ("task: x".encode("utf-16"), "is not UTF-8"),
    "bell": ("task: \x07", "control character U+0007"),
    "nul": ("task: \0", "control character U+0000"),
    "escaped nul": ('task: "\\0"', "a NUL character"),
    "escape": ("task: \x1b[31mred", "control character U+001B"),
    "version": ("%YAML 9.1\n---\na: b", "not YAML"),
    "huge code point": ('a: "\\UFFFFFFFF"', "not YAML"),
    "surrogate": ('a: "\\ud800"', "not YAML"),
}


@pytest.mark.timeout(1)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_at_once(write: Any, name: str) -> None:
    text, message = HOSTILE[name]
    found = problems(write(text))
    assert any(message in problem.message for problem in found), found
    assert len(found) <= 51


@pytest.mark.timeout(1)
def test_a_mapping_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {**JOB}
    endless["params"] = endless
    assert "deeper than 32 levels" in problems(endless)[0].message


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("jobs/reviws.yaml", "there is no such file", "write 'jobs/reviews.yaml'"),
        ("job/reviews.yaml", "there is no folder 'job'", "give the path of a YAML file"),
        ("jobs", "not a file", "give the path of a YAML file"),
        ("x" * 5000, "cannot be read: File name too long", "give the path of a YAML file"),
    ],
)
def test_a_file_that_is_not_there_is_said_to_be_so(write: Any, name: str, message: str, fix: str) -> None:
    write(TEXT, "jobs/reviews.yaml")
    assert only(name) == Problem(name, "", message, fix)


def test_a_byte_order_mark_and_windows_line_ends_are_read(write: Any) -> None:
    assert load_job(write(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())).task == "text-classification"


def test_a_variable_is_replaced_everywhere_but_in_vars(write: Any) -> None:
    text = TEXT.replace("path: out", "path: out/${day}/$${day}/$x").replace("data/", "${root}/")
    job = load_job(write(text + "vars: {day: 2026-11-20, root: '${day}'}\n"))
    assert job.output.path == "out/2026-11-20/${day}/$x"
    assert job.input.path == "${day}/*.parquet"


def test_a_variable_of_the_command_line_wins_and_need_not_be_declared(write: Any) -> None:
    name = write(TEXT.replace("path: out", "path: ${day}-${part}\nvars: {day: monday}\n"))
    job = load_job(name, vars={"day": "friday", "part": "7"})
    assert job.output.path == "friday-7"
    assert job.vars == {"day": "friday", "part": "7"}


def test_today_and_yesterday_are_dates_in_utc_that_need_no_declaration(write: Any) -> None:
    text = "task: fill-mask\nmodel: {id: m}\ninput: {path: 'in/${yesterday}'}\noutput: {path: 'out/${today}'}\n"
    before = datetime.now(UTC).date()
    job = load_job(write(text))
    after = datetime.now(UTC).date()
    found = (job.input.path, job.output.path)
    assert found in [(f"in/{day - timedelta(days=1)}", f"out/{day}") for day in (before, after)]
    assert job.vars == {}
    job = load_job(write(text + "vars: {today: soon}\n"), vars={"yesterday": "2026-11-20"})
    assert (job.input.path, job.output.path) == ("in/2026-11-20", "out/soon")


def test_a_slip_in_a_built_in_variable_is_told_and_day_is_none_of_them(write: Any) -> None:
    text = "task: fill-mask\nmodel: {id: m}\ninput: {path: '${%s}'}\noutput: {path: out}\n"
    for name, fix in (("yesteday", "write ${yesterday}"), ("day", "declare it under vars:, or give --var day=VALUE")):
        (found,) = problems(write(text % name))
        assert (found.message, found.fix) == (f"no variable {name!r}", fix)


def test_a_machine_file_has_no_built_in_variables_either() -> None:
    with pytest.raises(SpecError, match="no variable 'today'"):
        load_machine({"address": "${today}"})


def test_a_variable_can_be_a_number() -> None:
    job = load_job(job_with(input={"limit": "${n}"}, params={"top_k": "${n}"}), vars={"n": "5"})
    assert (job.input.limit, job.params) == (5, {"top_k": 5})


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("${dya}", "no variable 'dya'; there are day, part", "write ${day}"),
        ("${zzz}", "no variable 'zzz'; there are day, part", "declare it under vars:, or give --var zzz=VALUE"),
        ("${day", "'${' without '}'", "close it, or write $${ for a literal ${"),
        ("${}", "no variable ''; there are day, part", "declare it under vars:, or give --var =VALUE"),
    ],
)
def test_an_unknown_variable_is_told_once_with_those_there_are(text: str, message: str, fix: str) -> None:
    problem = only(job_with(input={"limit": text}, vars={"part": "1", "day": "2"}))
    assert (problem.key, problem.message, problem.fix) == ("input.limit", message, fix)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("input.keep", "[a, b]", ["a", "b"]),
        ("input.limit", "5", 5),
        ("input.limit", "", None),
        ("input.path", "*.parquet", "*.parquet"),
        ("input.path", "s3://bucket/${day}", "s3://bucket/x"),
        ("input.columns.text", "body", "body"),
        ("input.columns", "{text: body}", "body"),
        ("model.revision", "7140000", "7140000"),
        ("params.top_k", "2", 2),
        ("vars.day", "x", "x"),
    ],
)
def test_an_override_is_read_as_the_file_is(write: Any, key: str, text: str, value: object) -> None:
    job = load_job(write(TEXT), vars={"day": "x"}, overrides={key: text}).model_dump()
    path = [*key.split("."), "text"] if text.startswith("{") else key.split(".")
    for part in path:
        job = job[part]
    assert job == value


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("input.limit", "many", "expected a whole number, got 'many'"),
        ("input.limt", "5", "unknown key"),
        ("input.keep", "[a", "not YAML: did not find expected ',' or ']' while parsing a flow sequence"),
        ("input.keep", "&a b", "anchors are not read: &a"),
        ("input.path.0", "x", "nothing can be set below 'data/*.parquet'"),
        ("output.path", "${x}", "no variable 'x'"),
        ("output.path", "\udcff", "control character U+DCFF"),
    ],
)
def test_a_problem_of_an_override_stands_at_the_option(write: Any, key: str, text: str, message: str) -> None:
    problem = only(write(TEXT), overrides={key: text})
    assert (problem.place, problem.key, problem.message) == (f"--set {key}", key, message)


def test_a_problem_of_a_variable_stands_at_its_option(write: Any) -> None:
    assert only(write(TEXT), vars={"day": None}).place == "--var day"  # type: ignore[arg-type]


def test_a_wrong_value_in_the_file_may_be_overridden(write: Any) -> None:
    assert load_job(write(TEXT.replace("path: out", "path: ${nowhere}")), overrides={"output.path": "x"}).output.path


def test_no_machine_is_the_default_machine_and_can_be_overridden() -> None:
    assert load_machine(None).model_dump() == Machine().model_dump()
    assert load_machine(None, overrides={"actors": "{min: 1, max: 4}"}).model_dump()["actors"] == {"min": 1, "max": 4}
    assert load_machine(Machine(actors=2), overrides={"compile": "true"}).model_dump(exclude_unset=True) == {
        "actors": 2, "compile": True,
    }  # fmt: skip


def test_overrides_are_sorted_by_the_file_that_has_the_key() -> None:
    pairs = ["output.path=a=b", "actors=4", "params.top_k=", "compile=true"]
    assert split_overrides(pairs) == ({"output.path": "a=b", "params.top_k": ""}, {"actors": "4", "compile": "true"})


def test_overrides_that_fit_no_file_are_told_together() -> None:
    with pytest.raises(SpecError) as caught:
        split_overrides(["limit=5", "inptu.limit=5", "output.path", "zzz=1"])
    assert [problem.place for problem in caught.value.problems] == [
        "--set limit", "--set inptu.limit", "--set output.path", "--set zzz",
    ]  # fmt: skip
    fixes = [str(problem.fix) for problem in caught.value.problems]
    assert fixes[:3] == ["write input.limit=5", "write input.limit=5", "write output.path=VALUE"]
    assert fixes[3].startswith("a key starts with name, steps, task, ")


def test_a_jobspec_is_checked_and_returned_as_it_is() -> None:
    job = JobSpec(**{**JOB, "params": {"top_k": 2}})
    assert load_job(job) is job
    loaded = load_job(job_with(output={"path": "$${x}"}))
    assert load_job(loaded) is loaded
    assert loaded.output.path == "${x}"
    assert load_job(loaded, overrides={"input.limit": "5"}).output.path == "${x}"


def test_a_jobspec_takes_variables_and_overrides_and_keeps_its_origin(write: Any) -> None:
    job = JobSpec(**job_with(output={"path": "out/${day}"}))
    changed = load_job(job, vars={"day": "x"}, overrides={"input.limit": "3"})
    assert (changed.output.path, changed.input.limit) == ("out/x", 3)
    again = load_job(load_job(write(TEXT)), overrides={"input.limit": "3"})
    assert again.origin.problem(("model",), "x").place == "job.yaml:2:1"


def test_the_params_of_a_jobspec_are_checked_too() -> None:
    assert only(JobSpec(**{**JOB, "params": {"topk": 2}})).fix == "write 'top_k'"


def test_loading_imports_neither_torch_nor_ray() -> None:
    code = "import sys, hfbatch.load; print(sorted({'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.text("abtask: {}[]-\n\t&*!'\"|>#%@$~?,<0.", max_size=60), st.binary(max_size=40)))
def test_no_text_raises_anything_but_a_spec_error(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    path = tmp_path_factory.mktemp("any", numbered=True) / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    for load in (load_job, load_machine):
        with contextlib.suppress(SpecError):
            load(path)
    with contextlib.suppress(SpecError):
        load_job(JOB, overrides={"output.path": text if isinstance(text, str) else repr(text)})


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_KEY = (
    st.sampled_from([*JobSpec.model_fields, *InputSpec.model_fields, *Machine.model_fields, "id", "top_k"]) | st.text()
)
_ANY = st.recursive(_LEAF, lambda inner: st.lists(inner) | st.dictionaries(_KEY, inner), max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_KEY, _ANY))
def test_no_mapping_raises_anything_but_a_spec_error(tree: dict[str, Any]) -> None:
    for load, source in ((load_job, tree), (load_job, {**JOB, **tree}), (load_machine, tree)):
        with contextlib.suppress(SpecError):
            load(source)


_WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
_WORDS = st.lists(_WORD, min_size=1, max_size=3)
_JOBS = st.builds(
    JobSpec,
    name=_NAME,
    task=st.just("text-classification"),
    model=st.builds(
        ModelSpec, id=_WORD, revision=st.none() | _WORD, dtype=st.sampled_from(["auto", "float32"]),
        trust_remote_code=st.just(False),
    ),
    input=st.builds(
        InputSpec, path=_WORD | _WORDS, keep=st.just("all") | _WORDS,
        columns=st.dictionaries(_NAME, _WORD, max_size=3), where=st.none() | _WORD,
        limit=st.none() | st.integers(1, 10**12),
    ),
    params=st.fixed_dictionaries({}, optional={"top_k": st.none() | st.integers(1, 99), "truncation": st.booleans()}),
    output=st.builds(OutputSpec, path=_WORD, prefix=_WORD),
    errors=st.builds(ErrorsSpec, max_failed_fraction=st.floats(0, 1), max_failed_rows=st.none() | st.integers(0)),
    vars=st.dictionaries(_NAME, _WORD, max_size=3),
)  # fmt: skip


def _escaped(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: each if key == "vars" else _escaped(each) for key, each in node.items()}
    if isinstance(node, list):
        return [_escaped(each) for each in node]
    return node.replace("${", "$${") if isinstance(node, str) else node


@settings(max_examples=100, deadline=None)
@given(_JOBS)
def test_a_job_dumped_as_yaml_loads_equal(tmp_path_factory: pytest.TempPathFactory, job: JobSpec) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(yaml.safe_dump(_escaped(job.model_dump())), encoding="utf-8", newline="")
    assert load_job(path).model_dump() == job.model_dump()
    assert load_job(_escaped(job.model_dump())).model_dump() == job.model_dump()
