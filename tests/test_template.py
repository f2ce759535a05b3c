"""`hfbatch init TASK` and the job of `hfbatch tasks TASK`: files that load as printed and explain what is in them."""

import pytest

from hfbatch import tasks
from hfbatch.cli.template import job_file, short_job
from hfbatch.kinds import describe
from hfbatch.load import load_job
from hfbatch.modelspec import ModelSpec
from hfbatch.spec import ErrorsSpec, InputSpec, JobSpec, OutputSpec

ALL = pytest.mark.parametrize("task", tasks.all(), ids=lambda task: task.name)


def loaded(text, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_job(path)


def named_first(task):
    """The inputs that a first job maps: those that must be there, or the first of those that stand in for another."""
    return [*task.reads.names] or task.optional.names[:1]


def set_in(task):
    """Params that an example gives, other than by their default."""
    return {key: info.examples[0] for key, info in task.Params.model_fields.items() if info.examples}


@ALL
def test_it_loads_as_printed_and_changes_no_default(task, tmp_path):
    spec = loaded(job_file(task), tmp_path)
    assert (spec.name, spec.task) == (f"my-{task.name}", task.name)
    assert task.Params.model_validate(spec.params) == task.Params.model_validate(set_in(task))
    assert spec.errors == ErrorsSpec()
    assert spec.input == InputSpec(path="data/*.parquet", columns={name: name for name in named_first(task)})
    assert spec.model == ModelSpec(id="owner/name", revision="main")
    assert spec.output == OutputSpec(path=f"out/my-{task.name}")


@ALL
def test_the_short_job_loads_and_says_no_more_than_it_must(task, tmp_path):
    spec = loaded(short_job(task), tmp_path)
    assert (spec.task, spec.params) == (task.name, set_in(task))
    assert spec.model_fields_set | {"name"} <= {"name", "task", "model", "input", "params", "output"}
    lines = short_job(task).splitlines()
    assert len([line for line in lines if "# edit: " in line]) == 2
    assert max(map(len, lines)) <= 80


@ALL
def test_the_inputs_are_there_with_what_their_columns_may_hold(task):
    for text in (job_file(task), short_job(task, width=1000)):
        lines = [" ".join(line.split()) for line in text.splitlines()]
        for entry in task.reads:
            assert f"{entry.name}: {entry.name} # {describe(entry.type)}"[:60] in "\n".join(lines)
        for name in set(task.optional.names) - set(named_first(task)):
            assert any(line.startswith(f"# {name}: {name} # ") for line in lines), "commented out"


def test_a_name_that_says_something_about_params_sets_them(tmp_path):
    task = tasks.find("translation_en_to_de")
    for text in (job_file(task, name="translation_en_to_de"), short_job(task, "translation_en_to_de")):
        params = loaded(text, tmp_path).params
        assert (params["src_lang"], params["tgt_lang"]) == ("en", "de")


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
    names = [name for name in JobSpec.model_fields if name != "steps"]  # which stand instead of `task`
    wanted = [key for name in names for key in [name, *getattr(sections.get(name), "model_fields", ())]]
    place = wanted.index("columns") + 1
    assert keys == [*wanted[:place], *named_first(task), *wanted[place:]]
    assert all(line.partition("  # ")[2].strip() for line in lines)


@ALL
def test_no_line_is_longer_than_an_editor_shows(task):
    assert max(map(len, job_file(task).splitlines())) <= 100


@ALL
def test_it_says_how_to_check_plan_and_run_it(task):
    header = [line for line in job_file(task, "jobs/nightly.yaml").splitlines() if line.startswith("#")]
    for command in ("check", "plan", "run"):
        assert any(f"hfbatch {command} jobs/nightly.yaml " in line for line in header)


@pytest.mark.parametrize("path", ["jobs/nightly.yaml", "a b/größe 2.yaml", ".yaml", "x" * 300 + ".yaml", "..yaml"])
def test_the_name_fits_whatever_the_file_is_called(path, tmp_path):
    spec = loaded(job_file(tasks.find("fill-mask"), path), tmp_path)
    assert spec.output.path == f"out/{spec.name}"
