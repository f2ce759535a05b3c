"""Blocks of images in windows: the same results whatever the windows, in bounded memory, with one culprit found."""

import multiprocessing
import shutil
import threading

import numpy as np
import pyarrow as pa
import pytest

from hfbatch import columns as col
from hfbatch import isolation, streaming
from hfbatch.isolation import Child as RealChild
from hfbatch.isolation import Isolated
from hfbatch.load import load_job, load_machine
from hfbatch.model import Predict
from hfbatch.planner import make_plan
from hfbatch.postprocess import Finish
from hfbatch.preprocess import Preprocess
from tests.harm import add
from tests.inline import blocks_of, plan_of
from tests.zoo import pictures, vision

BROKEN = b"no image"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return vision.vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture
def plan_for(vit, write_parquet, job_for):
    """plan_for(images) -> a plan of one shard."""
    return lambda images: plan_of(job_for("image-classification", vit, write_parquet("in.parquet", {"image": images})))


def predicted(plan, predict=None):
    """The plan's rows as the sink would get them, and the ticket."""
    [block] = blocks_of(plan)
    made = (predict or Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step)))(block)
    return Finish(plan.job, "run")(made), col.ticket_of(made)


def small_windows(monkeypatch, rows):
    monkeypatch.setattr(streaming, "FIRST_ROWS", rows)
    monkeypatch.setattr(streaming, "MOST_ROWS", rows)


def test_windows_of_any_size_give_the_same_output(plan_for, monkeypatch):
    images = [*pictures.pictures(9), BROKEN, None, *pictures.pictures(6), *[BROKEN] * 7, pictures.png(7)]
    plan = plan_for(images)
    expected, whole = predicted(plan)
    assert expected["error"].null_count == 16
    for rows in (1, 2, 5, 25):
        small_windows(monkeypatch, rows)
        table, ticket = predicted(plan)
        assert table["labels"].combine_chunks().is_null().equals(expected["labels"].combine_chunks().is_null())
        scores = [np.array(t["labels"].combine_chunks().flatten().field("score")) for t in (table, expected)]
        assert np.allclose(*scores, atol=1e-6)
        assert table["error"].to_pylist() == expected["error"].to_pylist()
        assert table[col.ROW].to_pylist() == list(range(len(images)))
        for name in ("rows", "errors", "sequences"):
            assert ticket.stats[name] == whole.stats[name], name
        assert ticket.rows == len(images)
        assert ticket.digest == whole.digest


def table_of(rows):
    """A block of `rows` as windows see it."""
    ticket = col.Ticket("shard", rows, "", [("f", "", 0, rows)])
    return ticket.on(pa.table({col.ROW: range(rows), col.ERROR: pa.nulls(rows, pa.string())}))


def made_of(size):
    """A preprocess whose model input takes `size(row)` bytes; no bytes: the row is an error."""

    def preprocess(part):
        sizes = [size(row) for row in part[col.ROW].to_pylist()]
        values = pa.array([[bytes(each)] if each else [] for each in sizes], pa.list_(pa.binary()))
        errors = pa.array([None if each else "bad: row" for each in sizes], pa.string())
        return col.with_column(part, col.ERROR, errors).append_column(col.INPUT + "x", values)

    return preprocess


def lengths_of(table, preprocess):
    return [len(window) for _, window in streaming.windows(table, preprocess)]


def test_windows_cover_the_block_in_order_and_grow_to_what_fits(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 10_000)
    found = list(streaming.windows(table_of(500), made_of(lambda row: 100)))
    assert [first for first, _ in found] == np.cumsum([0, *(len(window) for _, window in found[:-1])]).tolist()
    assert sum(len(window) for _, window in found) == 500
    assert [col.ticket_of(window).rows for _, window in found] == [len(window) for _, window in found]
    sizes = [len(window) for _, window in found]
    assert sizes[:2] == [16, 64]
    assert 80 <= sizes[2] <= 100


def test_rows_with_errors_take_no_room_and_do_not_make_the_next_window_larger(monkeypatch):
    """A window of errors says nothing of the next; one of nearly all errors says what its good rows take."""
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 10_000)
    assert max(lengths_of(table_of(400), made_of(lambda row: 1000 if row >= 16 else 0))[2:]) <= 10
    assert lengths_of(table_of(400), made_of(lambda row: 1000 if row >= 15 else 0))[1] <= 10
    assert lengths_of(table_of(100), made_of(lambda row: 0))[:2] == [16, 16]


def test_a_row_larger_than_a_window_has_one_of_its_own(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 10)
    assert lengths_of(table_of(20), made_of(lambda row: 1000)) == [16, 1, 1, 1, 1]


def test_rows_stored_in_many_bytes_share_no_window_before_anything_is_known_of_them(monkeypatch):
    """Sixteen sounds of hours would be decoded at once otherwise."""
    monkeypatch.setattr(streaming, "STORED_BYTES", 10_000)
    sizes = [6_000] * 3 + [100] * 60 + [50_000] + [100] * 20
    table = table_of(len(sizes)).append_column("sound", pa.array([bytes(size) for size in sizes]))
    found = list(streaming.windows(table, made_of(lambda row: 10)))
    assert [sound for _, window in found for sound in window["sound"].to_pylist()] == table["sound"].to_pylist()
    kept = [sum(len(sound) for sound in window["sound"].to_pylist()) for _, window in found]
    assert all(size <= 10_000 or len(window) == 1 for size, (_, window) in zip(kept, found, strict=True))
    assert len(found) < len(sizes) / 3


def test_at_most_two_windows_exist_at_once(monkeypatch):
    small_windows(monkeypatch, 4)
    begun, inner = [], made_of(lambda row: 10)
    second = threading.Event()

    def preprocess(part):
        begun.append(part[col.ROW][0].as_py())
        if len(begun) == 2:
            second.set()
        return inner(part)

    stream = streaming.windows(table_of(40), preprocess)
    next(stream)
    assert second.wait(60), "the next window is made while this one is with the model"
    assert begun == [0, 4]
    next(stream)
    stream.close()
    assert begun[:3] == [0, 4, 8]
    assert len(begun) == 3


def test_who_announces_rows_makes_no_window_ahead_of_them(monkeypatch):
    small_windows(monkeypatch, 4)
    events = []
    inner = made_of(lambda row: 10)

    def preprocess(part):
        events.append("made")
        return inner(part)

    for first, _ in streaming.windows(table_of(10), preprocess, lambda rows: events.append(rows.tolist())):
        events.append(first)
    assert events == [[0, 1, 2, 3], "made", 0, [4, 5, 6, 7], "made", 4, [8, 9], "made", 8]


def test_an_error_that_is_no_rows_fault_ends_the_block():
    def preprocess(part):
        raise AssertionError("lost, added or shuffled rows")

    with pytest.raises(AssertionError, match="lost, added"):
        list(streaming.windows(table_of(3), preprocess))


DEADLY = """
import os

from transformers import ViTImageProcessorPil


class Deadly(ViTImageProcessorPil):
    def __call__(self, images, **options):
        if images[0].width == 13:
            os._exit(3)
        return super().__call__(images, **options)
"""


@pytest.mark.slow
def test_an_image_that_ends_the_process_is_found_and_all_others_have_their_results(
    vit, tmp_path, write_parquet, job_for, monkeypatch
):
    """It dies in a window that other rows' results would otherwise be made beside."""
    model = shutil.copytree(vit, tmp_path / "deadly")
    (model / "deadly.py").write_text(DEADLY)
    add(model / "preprocessor_config.json", {"AutoImageProcessor": "deadly.Deadly"})
    images = [pictures.png(seed, (32, 32)) for seed in range(90)]
    images[70], images[3] = pictures.png(70, (13, 32)), BROKEN
    job = job_for("image-classification", model, write_parquet("in.parquet", {"image": images}))
    job["model"]["trust_remote_code"] = True
    plan = make_plan(load_job(job), load_machine({}), trust_remote_code=True)
    children = []
    monkeypatch.setattr(isolation, "Child", lambda like: children.append(RealChild(like)) or children[-1])
    step = plan.job.step
    table, ticket = predicted(plan, Isolated(Predict(step, plan.machine, 1, Preprocess(step), gpu=False)))
    errors = {row: error.partition(":")[0] for row, error in enumerate(table["error"].to_pylist()) if error}
    assert errors == {3: "bad_image", 70: "crashed_worker"}
    assert table["labels"].null_count == 2
    assert ticket.stats["rows"] == 90
    assert len(children) == 3, "one that dies over a window, one that dies over the image alone, one for the rest"
    assert multiprocessing.active_children() == []
