"""`hfbatch init TASK`: a job file that loads as printed and explains every key."""

import pytest

from hfbatch import tasks
from hfbatch.cli.template import job_file
from hfbatch.load import load_job
from hfbatch.spec import ErrorsSpec, InputSpec, JobSpec, ModelSpec, OutputSpec

ALL = pytest.mark.parametrize("task", tasks.all(), ids=lambda task: task.name)


def loaded(text, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_job(path)


@ALL
def test_it_loads_as_printed_and_changes_no_default(task, tmp_path):
    spec = loaded(job_file(task), tmp_path)
    assert (spec.name, spec.task) == (f"my-{task.name}", task.name)
    assert task.Params.model_validate(spec.params) == task.Params()
    assert spec.errors == ErrorsSpec()
    columns = {name: name for name in task.reads.names}
    assert spec.input == InputSpec(path="data/*.parquet", columns=columns)
    assert spec.model == ModelSpec(id="owner/name", revision="main")
    assert spec.output == OutputSpec(path=f"out/my-{task.name}")


@ALL
def test_every_key_is_there_and_has_a_comment(task):
    lines = [line for line in job_file(task).splitlines() if not line.lstrip().startswith("#")]
    keys = [line.partition(":")[0].strip() for line in lines]
    sections = {
        "model": ModelSpec,
        "input": InputSpec,
        "params": task.Params,
        "output": OutputSpec,
        "errors": ErrorsSpec,
    }
    wanted = [key for name in JobSpec.model_fields for key in [name, *getattr(sections.get(name), "model_fields", ())]]
    assert keys == wanted
    assert all(line.partition("  # ")[2].strip() for line in lines)


@ALL
def test_no_line_is_longer_than_an_editor_shows(task):
    assert max(map(len, job_file(task).splitlines())) <= 100


@ALL
def test_it_says_how_to_check_plan_and_run_it(task):
    header = [line for line in job_file(task, "jobs/nightly.yaml").splitlines() if line.startswith("#")]
    for command in ("check", "plan", "run"):
        assert any(f"hfbatch {command} jobs/nightly.yaml " in line for line in header)


def test_optional_inputs_are_named():
    assert "text_pair may be given too" in " ".join(job_file(tasks.find("text-classification")).split())


@pytest.mark.parametrize("path", ["jobs/nightly.yaml", "a b/größe 2.yaml", ".yaml", "x" * 300 + ".yaml", "..yaml"])
def test_the_name_fits_whatever_the_file_is_called(path, tmp_path):
    spec = loaded(job_file(tasks.find("fill-mask"), path), tmp_path)
    assert spec.output.path == f"out/{spec.name}"
