"""The commands as people and programs use them: help, words, JSON, terminals, and a job from first run to conflict."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hfbatch import tasks
from hfbatch.errors import Interrupted
from tests.console import assert_tidy, command_in_this_process, in_a_process, kinds_of_errors, on_a_terminal
from tests.models import sentences

COMMANDS = [
    *("run", "plan", "check", "tasks", "init", "schema"),
    *("status", "report", "errors", "retry", "verify", "repair", "gc"),
    *("submit", "logs", "cancel", "preview", "compare", "schedule"),
]
MISTAKES = """\
task: text-clasification
model:
  id: owner/name
  revison: main
input:
  path: data/*.parquet
  limit: -3
output: {}
"""
FINE = """\
task: fill-mask
model: {id: owner/name}
input: {path: 'data/*.parquet'}
output: {path: out/x}
"""


@pytest.fixture
def hfbatch(capsys):
    return command_in_this_process(capsys)


@pytest.fixture
def job_file(tmp_path):
    def write(text):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_each_example_on_a_line_of_its_own(hfbatch, command):
    code, out, _ = hfbatch(command, "--help")
    examples = re.findall(r"^ +(hfbatch .*)$", out[out.index("Examples:") :], re.MULTILINE)
    assert code == 0
    assert examples
    assert all(example.split()[1] == command for example in examples)
    assert max(map(len, out.splitlines())) <= 80
    assert_tidy(out)


def test_help_names_every_command_and_every_exit_code(hfbatch):
    code, out, _ = hfbatch("--help")
    assert code == 0
    commands = out[out.index("Commands:") : out.index("Start here")]
    assert re.findall(r"^  (\w+)  ", commands, re.MULTILINE) == COMMANDS
    assert "..." not in commands
    listed = {int(number) for number in re.findall(r"\b\d{1,3}\b", out[out.index("Exit codes") :])}
    assert listed == {0, 130, 143} | {kind.exit_code for kind in kinds_of_errors() if kind is not Interrupted}
    assert_tidy(out)


def test_help_is_the_same_on_a_terminal():
    code, seen = on_a_terminal(80, "run", "--help")
    assert code == 0
    assert "\n    hfbatch run job.yaml --on configs/one-gpu.yaml --var day=2026-11-20\n" in seen


def test_version(hfbatch):
    assert hfbatch("--version") == (0, "hfbatch 0.1.0\n", "")


def test_tasks_lists_each_task_on_a_line_and_says_which_are_adapted(hfbatch):
    code, out, err = hfbatch("tasks")
    assert (code, err) == (0, "")
    native, _, adapted = out.partition("\nAdapted: ")
    for part, of_that_kind in ((native, False), (adapted, True)):
        listed = [line.split()[0] for line in part.splitlines() if "  " in line and not line.startswith("task ")]
        assert listed == [task.name for task in tasks.all() if task.adapted is of_that_kind]
    assert_tidy(out)


@pytest.mark.parametrize("task", tasks.all(), ids=lambda task: task.name)
def test_a_task_is_shown_with_every_parameter_and_a_job_file(hfbatch, task, job_file):
    code, out, _ = hfbatch("tasks", task.name)
    about, _, job = out.partition("\na job file\n")
    listed = re.split(r"^name +default +meaning$", about, flags=re.MULTILINE)[1:]
    shown = [line.split()[0] for part in listed for line in part.splitlines() if line]
    assert code == 0
    assert shown == list(task.Params.model_fields)
    assert hfbatch("check", job_file(job))[0] == 0
    assert_tidy(out)
    code, out, _ = hfbatch("tasks", task.name, "--json")
    (found,) = json.loads(out)
    assert list(found["params"]) == list(task.Params.model_fields)
    assert [*found["reads"], *found["optional"]] == [*task.reads.names, *task.optional.names]
    assert found["job"] == job
    assert found["adapted"] is task.adapted


def test_tables_fold_inside_a_narrow_terminal():
    for arguments in (["tasks"], ["tasks", "text-classification"]):
        code, seen = on_a_terminal(60, *arguments)
        assert code == 0
        assert max(len(line) for line in re.sub(r"\x1b\[\d*m", "", seen).splitlines()) <= 60


def test_an_unknown_task_is_told_with_the_nearest_name(hfbatch):
    code, out, err = hfbatch("init", "fill-masks")
    assert (code, out, err) == (2, "", "TASK: no task 'fill-masks'\n  fix: write 'fill-mask'\n")


def test_check_says_in_a_line_what_the_job_is(hfbatch, job_file):
    path = job_file(FINE)
    assert hfbatch("check", path) == (0, f"{path}: ok: fill-mask with owner/name over data/*.parquet into out/x\n", "")
    code, out, err = hfbatch("check", path, "--json", "--set", "max_batch_rows=7", "--set", "input.limit=3")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["machine"]["max_batch_rows"], found["job"]["input"]["limit"]) == (7, 3)


def test_check_tells_the_mistakes_of_files_and_options_together(hfbatch, job_file, tmp_path):
    options = ["--set", "inptu.limit=1", "--var", "day", "--on", tmp_path / "none.yaml"]
    path = job_file(MISTAKES)
    code, out, err = hfbatch("check", path, *options)
    assert (code, out) == (2, "")
    for told in (
        "--set inptu.limit: unknown key\n  fix: write input.limit=1",
        "--var day: is not NAME=VALUE",
        f"{path}:1:1: task: no task 'text-clasification'",
        f"{path}:4:3: model.revison: unknown key",
        f"{path}:7:3: input.limit: must be greater than 0",
        f"{path}:8:1: output.path: missing",
        f"{tmp_path / 'none.yaml'}: there is no such file",
    ):
        assert told in err
    code, out, again = hfbatch("check", path, *options, "--json")
    assert (code, again) == (2, err)
    assert [problem["place"] for problem in json.loads(out)["error"]["problems"]][-2:] == [
        f"{path}:8:1",
        f"{tmp_path}/none.yaml",
    ]


def test_json_stays_whole_where_stdout_knows_no_unicode(job_file):
    path = job_file(FINE.replace("out/x", "out/größe"))
    command = [sys.executable, "-m", "hfbatch.cli", "check", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True)
    assert json.loads(done.stdout)["job"]["output"]["path"] == "out/größe"


def test_init_writes_a_file_that_check_accepts_and_never_overwrites_one(hfbatch, tmp_path):
    path = tmp_path / "new" / "embed.yaml"
    code, out, _ = hfbatch("init", "feature-extraction", "-o", path)
    assert code == 0
    assert out.endswith(f"then: hfbatch check {path}\n")
    assert hfbatch("check", path)[:1] == (0,)
    before = path.read_text()
    assert "name: embed " in before
    code, _, err = hfbatch("init", "fill-mask", "-o", path)
    assert (code, err) == (2, f"--output: {path}: exists and is not overwritten\n  fix: name another file\n")
    code, _, err = hfbatch("init", "fill-mask", "-o", path / "below.yaml")
    assert code == 2
    assert "is not a folder" in err
    assert path.read_text() == before
    code, out, _ = hfbatch("init", "sentence-similarity", "--json")
    assert json.loads(out)["text"].count("task: feature-extraction ") == 1


def test_schema_is_json(hfbatch):
    code, out, _ = hfbatch("schema", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(hfbatch("schema")[1])


@pytest.fixture
def classified(classifier, write_parquet, tmp_path):
    """A job file over 60 rows in two files."""
    for name in ("a", "b"):
        write_parquet(f"in/{name}.parquet", {"text": sentences(30), "day": ["2026-11-20"] * 30})
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"task: text-classification\nmodel: {{id: '{classifier}'}}\ninput: {{path: '{tmp_path}/in/*.parquet'}}\n"
        f"params: {{top_k: 1}}\noutput: {{path: '{tmp_path}/out'}}\n"
    )
    return path


def test_plan_shows_columns_in_words_and_writes_nothing(hfbatch, classified, tmp_path):
    code, out, err = hfbatch("plan", classified)
    assert (code, err) == (0, "")
    columns = [line.split() for line in out[out.index("columns ") : out.index("shards ")].splitlines()]
    assert columns[0] == ["columns", "text", "string"]
    assert ["score", "float32"] in columns
    assert ["model_id", "string"] in columns
    assert re.search(r'^params +\{"truncation": true, "max_length": null, .*"top_k": 1', out, re.MULTILINE)
    assert re.search(r"^state +1 shard to do, 60 rows$", out, re.MULTILINE)
    assert_tidy(out)
    code, out, _ = hfbatch("plan", classified, "--json")
    found = json.loads(out)
    assert (found["rows"], found["complete"], found["conflict"]) == (60, False, None)
    assert sum(shard["rows"] for shard in found["shards"]) == 60
    assert not (tmp_path / "out").exists()


def test_a_job_from_its_first_run_to_a_conflict(hfbatch, classified, tmp_path):
    code, out, err = in_a_process("run", classified, "--json", "--head", "2")
    first = json.loads(out)
    assert code == 0, err
    assert (first["outcome"], first["rows"], first["rows_new"]) == ("success", 60, 60)
    assert [row["text"] for row in first["head"]] == sentences(30)[:2]
    assert all(line.startswith("tiny: ") for line in err.splitlines()), err
    files = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))

    code, out, err = hfbatch("run", classified)
    assert (code, err) == (0, "")
    assert re.search(r"^outcome +nothing to do$", out, re.MULTILINE)
    assert re.search(r"^rows +60 in the output: 0 new, 60 already committed$", out, re.MULTILINE)
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*")) == files

    code, out, _ = hfbatch("status", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, found["complete"], found["rows_committed"], found["rows_planned"]) == (0, True, 60, 60)
    assert [(run["run_id"], run["outcome"]) for run in found["runs"]] == [(first["run_id"], "success")]

    for command in ("run", "plan"):
        code, out, err = hfbatch(command, classified, "--set", "params.top_k=2", "--json")
        assert (code, json.loads(out)["exit_code"]) == (5, 5)
        assert re.search(r'params: there \{.*"top_k":1.*\}, now \{.*"top_k":2', err)
        assert "--new-generation" in err

    classified.write_text(MISTAKES)
    code, out, err = hfbatch("run", classified)
    assert (code, out) == (2, "")
    assert err.count(f"{classified}:") == 4
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*")) == files


def test_the_module_is_the_command():
    assert in_a_process("--version", cwd=Path(__file__).parent.parent)[:2] == (0, "hfbatch 0.1.0\n")
