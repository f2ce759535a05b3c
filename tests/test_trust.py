"""trust.py, and what of a model may run: nothing that came with it, unless all that it takes is there."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hfbatch
from hfbatch import hub
from hfbatch.errors import AccessRefused, SpecError
from hfbatch.job import Source, load_task
from hfbatch.load import load_job, load_machine
from hfbatch.loading import load_model
from hfbatch.modelspec import ModelSpec
from hfbatch.planner import Plan, make_plan
from hfbatch.spec import JobSpec
from hfbatch.trust import TrustRefused, check_trust, code_repositories
from tests import console, models
from tests.fake_hub import fake_hub

CODE = """
import os
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification

Path(os.environ["SENTINEL"]).write_text({version!r})

class HomemadeConfig(BertConfig):
    model_type = "homemade"

class HomemadeModel(BertForSequenceClassification):
    config_class = HomemadeConfig
    version = {version!r}
"""
FULL = "0a" * 20


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a model's code writes when it runs; transformers keeps its copies of such code in tmp_path."""
    modules = str(tmp_path / "modules")
    monkeypatch.setenv("SENTINEL", str(tmp_path / "sentinel"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "sentinel"


@pytest.fixture
def homemade(tmp_path: Path) -> Path:
    """A checkpoint that transformers cannot load without its code."""
    return with_code(models.bert(tmp_path / "homemade", num_labels=2), "modeling_homemade")


def with_code(folder: Path, module: str) -> Path:
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "HomemadeConfig", "AutoModelForSequenceClassification": "HomemadeModel"}
    config |= {"model_type": "homemade", "auto_map": {auto: f"{module}.{name}" for auto, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    if "--" not in module:
        (folder / f"{module}.py").write_text(CODE.format(version="1"))
    return folder


@pytest.fixture
def job(write_parquet: Callable[..., Path], job_for: Callable[..., dict[str, Any]], homemade: Path) -> dict[str, Any]:
    return job_for("text-classification", homemade, write_parquet("in/a.parquet", {"text": ["good", "bad"]}))


def plan_of(job: dict[str, Any], *, consent: bool = False) -> Plan:
    return make_plan(load_job(job), load_machine(None), trust_remote_code=consent)


def spec_of(**model: Any) -> JobSpec:
    model_spec = ModelSpec(**{"id": "owner/name", "trust_remote_code": True, **model})
    return JobSpec(task="x", model=model_spec, input={"path": "x"}, output={"path": "x"})  # type: ignore[arg-type]


def test_all_that_is_missing_is_told_at_once() -> None:
    with pytest.raises(TrustRefused) as caught:
        check_trust(spec_of(revision="main"), allowed=False)
    assert caught.value.exit_code == 77
    assert isinstance(caught.value, AccessRefused)
    assert isinstance(caught.value, SpecError)
    assert [problem.key for problem in caught.value.problems] == [
        "model.revision",
        "model.code_revision",
        "model.trust_remote_code",
    ]
    text = str(caught.value)
    assert "needs a full commit as revision, got 'main'" in text
    assert "needs a full commit as code_revision, got null" in text
    assert "add --trust-remote-code to the command (trust_remote_code=True in Python)" in text


@pytest.mark.parametrize("pin", [None, "main", FULL[:7], FULL[:39], FULL.upper(), FULL + "0", f"{FULL}\n"])
@pytest.mark.parametrize("key", ["revision", "code_revision"])
def test_only_a_full_commit_will_do(key: str, pin: str | None) -> None:
    full = {"revision": FULL, "code_revision": FULL}
    check_trust(spec_of(**full), allowed=True)
    with pytest.raises(TrustRefused) as caught:
        check_trust(spec_of(**{**full, key: pin}), allowed=True)
    assert [problem.key for problem in caught.value.problems] == [f"model.{key}"]


def test_a_directory_needs_consent_but_no_commits(tmp_path: Path) -> None:
    check_trust(spec_of(id=str(tmp_path)), allowed=True)
    with pytest.raises(TrustRefused, match=r"read that code, then add --trust-remote-code"):
        check_trust(spec_of(id=str(tmp_path)), allowed=False)


def test_consent_without_the_key_runs_no_code(job: dict[str, Any], sentinel: Path) -> None:
    for consent in (False, True):
        with pytest.raises(AccessRefused, match=r"without code of its own; read that code, then write trust_remote_co"):
            plan_of(job, consent=consent)
    assert not sentinel.exists()


def test_code_of_a_directory_runs_with_key_and_consent(job: dict[str, Any], sentinel: Path) -> None:
    job["model"]["trust_remote_code"] = True
    with pytest.raises(AccessRefused, match="add --trust-remote-code"):
        plan_of(job)
    assert not sentinel.exists()
    plan = plan_of(job, consent=True)
    assert sentinel.read_text() == "1"
    import torch

    model = load_model(plan.job.step, plan.job.step.make_task(), torch.device("cpu"))
    assert type(model).__name__ == "HomemadeModel"


def test_a_model_that_transformers_knows_is_loaded_without_the_code_beside_it(
    job: dict[str, Any], homemade: Path, sentinel: Path
) -> None:
    config = json.loads((homemade / "config.json").read_text())
    (homemade / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    import torch

    plan = plan_of(job)
    model = load_model(plan.job.step, plan.job.step.make_task(), torch.device("cpu"))
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not sentinel.exists()
    job["model"]["trust_remote_code"] = True
    assert plan_of(job, consent=True).job.generation != plan.job.generation


def test_code_of_another_repository_runs_at_code_revision(
    tmp_path: Path, sentinel: Path, write_parquet: Callable[..., Path], job_for: Callable[..., dict[str, Any]]
) -> None:
    with fake_hub(tmp_path / "cache") as server:
        first = server.commit("owner/code", {"modeling_homemade.py": CODE.format(version="first").encode()})
        server.commit("owner/code", {"modeling_homemade.py": CODE.format(version="second").encode()})
        folder = with_code(models.bert(tmp_path / "tiny"), "owner/code--modeling_homemade")
        commit = server.commit("owner/tiny", folder)
        spec = ModelSpec(id="owner/tiny", revision=commit, code_revision=first, trust_remote_code=True)
        model = hub.resolve_model(spec)
        local = hub.fetch(model, weights=False, code=True)
        task = load_task("text-classification", {}, Source(local, True, model.code_revision))
        assert type(task.config).__name__ == "HomemadeConfig"
        assert sentinel.read_text() == "first"
        job = job_for("text-classification", Path("owner/tiny"), write_parquet("in/a.parquet", {"text": ["good"]}))
        job["model"] |= {"revision": commit, "code_revision": first, "trust_remote_code": True}
        assert plan_of(job, consent=True).job.identity["remote_code"] == first


def test_the_commit_of_the_code_is_part_of_the_generation(job: dict[str, Any], sentinel: Path) -> None:
    job["model"]["trust_remote_code"] = True
    trusting = plan_of(job, consent=True).job
    step = replace(trusting.step, model=replace(trusting.step.model, code_revision=FULL))
    other = replace(trusting, steps=(step,))
    assert trusting.identity["remote_code"] == trusting.step.model.commit
    assert other.identity["remote_code"] == FULL
    assert other.generation != trusting.generation
    assert json.loads(step.parameters)["remote_code"] == FULL


def test_the_commands_refuse_with_everything_that_is_missing(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job["model"] = {"id": "owner/name", "trust_remote_code": "true"}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job, indent=1))
    call = console.command_in_this_process(capsys)
    for command, flag in (("run", []), ("plan", []), ("plan", ["--trust-remote-code"]), ("check", [])):
        code, out, err = call(command, file, *flag)
        assert (code, out) == (77, "")
        assert "needs a full commit as revision" in err
        assert "needs a full commit as code_revision" in err
        assert ("add --trust-remote-code to the command" in err) is (not flag and command != "check")
    with pytest.raises(AccessRefused):
        hfbatch.check(file)


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """The end of a terminal that a program would be asked on; nobody types."""
    master, slave = pty.openpty()
    try:
        yield slave
    finally:
        os.close(slave)
        os.close(master)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["terminal", "closed"])
def test_nobody_is_asked_on_a_terminal(job: dict[str, Any], sentinel: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))
    command = [sys.executable, "-m", "hfbatch.cli", "plan", str(file)]
    with terminal() as stdin:
        given = stdin if kind == "terminal" else subprocess.DEVNULL
        done = subprocess.run(command, stdin=given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 77, done.stderr
    assert "cannot be loaded without code of its own" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert not sentinel.exists()


def test_names_of_other_repositories_are_found_wherever_transformers_looks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"auto_map": {"AutoModel": "a/b--m.C"}, "text": {"auto_map": {"x": "c--m.D"}}}'
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": [null, "d/e--t.F"]}, "x": "no--t.G"}'
    )
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    assert code_repositories(tmp_path) == ["a/b", "c", "d/e"]
