"""The names other people's code may rely on. A change here is a change of the public contract."""

import inspect
import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import hfbatch
from hfbatch.errors import HfbatchError, Interrupted, SpecError
from hfbatch.spec import JobSpec, Machine

JOB = {
    "task": "text-classification",
    "model": {"id": "owner/name"},
    "input": {"path": "in.parquet"},
    "output": {"path": "out"},
}
FUNCTIONS = {name: getattr(hfbatch, name) for name in hfbatch.__all__ if inspect.isfunction(getattr(hfbatch, name))}


def test_the_public_names_are_these():
    assert hfbatch.__all__ == [
        "HfbatchError",
        "JobSpec",
        "Machine",
        "SpecError",
        "check",
        "compare",
        "enrich",
        "failed_rows",
        "load_job",
        "load_machine",
        "plan",
        "preview",
        "repair",
        "retry",
        "run",
        "shutdown",
        "verify",
        "warm",
    ]
    assert all(hasattr(hfbatch, name) for name in hfbatch.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", hfbatch.__version__)


def test_the_functions_take_these_arguments():
    assert {name: str(inspect.signature(function)) for name, function in FUNCTIONS.items()} == {
        "check": "(job: 'Job', *, on: 'On' = None, vars: 'Mapping[str, str] | None' = None) -> 'JobSpec'",
        "enrich": "(frame: 'F', /, *, task: 'str', model: 'str | os.PathLike[str] | Mapping[str, Any]', "
        "column: 'str | Mapping[str, str] | None' = None, prefix: 'str' = '', lineage: 'bool' = False, "
        "on: 'str | Path | Mapping[str, Any] | Machine | None' = None, progress: 'bool' = True, "
        "**params: 'Any') -> 'F'",
        "compare": "(a: 'str', b: 'str', *, on: 'str | None' = None, top: 'int' = 10) -> 'Comparison'",
        "failed_rows": "(output: 'str', *, code: 'str | None' = None) -> 'Iterator[FailedRow]'",
        "load_job": "(source: 'str | Path | Mapping[str, Any] | JobSpec', *, vars: 'Mapping[str, str] | None' = None, "
        "overrides: 'Mapping[str, str] | None' = None) -> 'JobSpec'",
        "load_machine": "(source: 'str | Path | Mapping[str, Any] | Machine | None', *, "
        "overrides: 'Mapping[str, str] | None' = None) -> 'Machine'",
        "plan": "(job: 'Job', *, on: 'On' = None, vars: 'Mapping[str, str] | None' = None, "
        "new_generation: 'bool' = False, trust_remote_code: 'bool' = False) -> 'Plan'",
        "preview": "(job: 'Job', rows: 'int' = 5, *, on: 'On' = None, vars: 'Mapping[str, str] | None' = None, "
        "trust_remote_code: 'bool' = False) -> 'pa.Table'",
        "repair": "(output: 'str', *, on: 'On' = None, overrides: 'Mapping[str, str] | None' = None, "
        "trust_remote_code: 'bool' = False, watch: 'Callable[[Progress], None] | None' = None) -> 'RunReport | None'",
        "retry": "(output: 'str', *, on: 'On' = None, overrides: 'Mapping[str, str] | None' = None, "
        "trust_remote_code: 'bool' = False, code: 'str | None' = None, "
        "watch: 'Callable[[Progress], None] | None' = None) -> 'RunReport | None'",
        "run": "(job: 'Job | Plan', *, on: 'On' = None, vars: 'Mapping[str, str] | None' = None, "
        "new_generation: 'bool' = False, trust_remote_code: 'bool' = False, "
        "watch: 'Callable[[Progress], None] | None' = None, wait: 'bool' = False) -> 'RunReport'",
        "shutdown": "() -> 'None'",
        "verify": "(output: 'str', *, rows: 'int' = 0, seed: 'int | None' = None, on: 'On' = None, "
        "overrides: 'Mapping[str, str] | None' = None, trust_remote_code: 'bool' = False) -> 'Examined'",
        "warm": "(keep: 'int' = 2) -> 'Iterator[None]'",
    }


@pytest.mark.parametrize("name", hfbatch.__all__)
def test_every_public_name_says_what_it_is(name):
    assert len(inspect.getdoc(getattr(hfbatch, name)) or "") > 20


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_says_what_it_raises(name):
    if name == "run":
        assert "Raises the\nerrors of `plan`, and those of hfbatch.errors" in inspect.getdoc(FUNCTIONS[name])
    else:
        said = "Raises nothing" if name in ("shutdown", "warm") else "SpecError"
        assert said in inspect.getdoc(FUNCTIONS[name])


def test_types_travel_with_the_package():
    assert resources.files("hfbatch").joinpath("py.typed").is_file()
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["hfbatch"]


def test_the_version_is_the_packages():
    assert metadata.version("hfbatch") == hfbatch.__version__


def test_importing_it_is_light():
    code = "import sys, hfbatch; assert not {'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "task: text-classification\nmodel: {id: owner/name}\ninput: {path: '${day}.parquet'}\noutput: {path: out}\n"
    )
    return path


def test_check_takes_a_file_by_path_or_name(job_file):
    spec = hfbatch.check(job_file, vars={"day": "monday"})
    assert isinstance(spec, JobSpec)
    assert (spec.name, spec.input.path) == ("job", "monday.parquet")
    assert hfbatch.check(str(job_file), vars={"day": "monday"}) == spec


def test_check_takes_a_mapping_and_leaves_it_as_it_was():
    job = {**JOB, "input": {"path": "${day}.parquet"}}
    assert hfbatch.check(job, vars={"day": "monday"}).input.path == "monday.parquet"
    assert job["input"] == {"path": "${day}.parquet"}


def test_check_takes_a_spec_and_gives_it_back():
    spec = hfbatch.check(JOB)
    assert hfbatch.check(spec) is spec


@pytest.mark.parametrize(
    ("job", "on", "text"),
    [
        ({**JOB, "task": "text-clasification"}, None, "text-classification"),
        (JOB, {"max_batch_token": 7}, "max_batch_token: unknown key"),
        ({**JOB, "modell": {}}, None, "modell: unknown key"),
        ("no/such/job.yaml", None, "no/such/job.yaml"),
    ],
    ids=["task", "machine", "key", "file"],
)
def test_check_refuses_what_is_wrong_in_job_or_machine(job, on, text):
    with pytest.raises(SpecError, match=re.escape(text)):
        hfbatch.check(job, on=on)


def test_check_takes_a_machine_in_every_form(tmp_path):
    (tmp_path / "machine.yaml").write_text("actors: 2\n")
    for on in (None, {"actors": 2}, Machine(actors=2), tmp_path / "machine.yaml", str(tmp_path / "machine.yaml")):
        assert hfbatch.check(JOB, on=on) == hfbatch.check(JOB)


def test_everything_that_can_be_expected_to_fail_is_one_kind_of_error_with_an_exit_code():
    def below(kind):
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    tree = [kind for kind in below(HfbatchError) if kind.__module__ == "hfbatch.errors"]
    codes = {kind.__name__: kind.exit_code for kind in tree if kind is not Interrupted}
    assert codes == {
        "HfbatchError": 70,
        "SpecError": 2,
        "ErrorBudgetExceeded": 3,
        "Incomplete": 4,
        "Conflict": 5,
        "InputChanged": 5,
        "Damage": 6,
        "GateFailed": 9,
        "SystemicError": 70,
        "StorageError": 74,
        "Locked": 75,
        "AccessRefused": 77,
        "UnsafeStore": 78,
    }
    assert [Interrupted(number).exit_code for number in (2, 15)] == [130, 143]
