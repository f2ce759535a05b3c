"""`hfbatch compare`: rows of two outputs side by side, whatever their shards; counts that can be checked by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfbatch
from hfbatch import pairing, tallies
from hfbatch.comparison import Comparison
from hfbatch.comparison_html import comparison_page
from hfbatch.errors import Damage, SpecError
from hfbatch.pairing import Side, by_place
from hfbatch.tallies import OTHER, LabelTally, Rows, ScoreTally, VectorTally, tallies_for
from tests import models
from tests.console import assert_tidy, command_in_this_process
from tests.inline import plan_of
from tests.models import sentences
from tests.outputs import copied, runs_in_this_process


def run(job, folder, **machine):
    """The job's output in a folder of its own; its path."""
    job = {**job, "output": {"path": str(folder)}, "errors": {"max_failed_fraction": 1}}
    with runs_in_this_process():
        hfbatch.run(plan_of(job, **machine))
    return str(folder)


def table_of(output):
    return pq.read_table(f"{output}/data")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """As the classifier, with other weights."""
    labels = {0: "negative", 1: "neutral", 2: "positive"}
    folder = tmp_path_factory.mktemp("models") / "other"
    options = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
    return models.bert(folder, **options, initializer_range=0.41)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def job(folder, classifier):
    """120 rows in three files; every fortieth has no text."""
    (folder / "in").mkdir()
    texts = [None if row % 40 == 7 else text for row, text in enumerate(sentences(120, seed=3))]
    for number in range(3):
        own = texts[40 * number : 40 * number + 40]
        columns = {"id": [f"id{40 * number + row}" for row in range(40)], "text": own}
        pq.write_table(pa.table(columns), folder / f"in/{number}.parquet", row_group_size=10)
    return {
        "task": "text-classification",
        "model": {"id": str(classifier)},
        "input": {"path": str(folder / "in")},
    }


@pytest.fixture(scope="module")
def a(job, folder):
    return run(job, folder / "a", shard_rows=16)


@pytest.fixture(scope="module")
def b(job, folder, other):
    return run({**job, "model": {"id": str(other)}}, folder / "b", shard_rows=50)


def test_an_output_agrees_with_itself(a):
    found = hfbatch.compare(a, a)
    assert (found.rows, found.only_a, found.only_b, found.failed_a, found.failed_b) == (120, 0, 0, 3, 3)
    assert found.errors == [("null_input", "null_input", 3)]
    (labels,), (scores,) = found.labels, found.scores
    assert (labels.rows, labels.equal, labels.equal_share) == (117, 117, 1.0)
    assert labels.a == labels.b
    assert all(one == other for one, other, _ in labels.confusion)
    assert (scores.mean_change, scores.largest_difference, found.changes) == (0, 0, [])
    assert [each.column for each in found.values] == ["truncated"]
    assert found.a == found.b
    assert found.a.task == "text-classification"


def test_two_models_are_compared_row_by_row_however_their_shards_were_cut(a, b):
    found = hfbatch.compare(a, b, top=7)
    one, other = (table_of(output).sort_by("id").to_pylist() for output in (a, b))
    pairs = [(x, y) for x, y in zip(one, other, strict=True) if x["error"] is None]
    equal = sum(x["label"] == y["label"] for x, y in pairs)
    changes = [y["score"] - x["score"] for x, y in pairs]
    (labels,), (scores,) = found.labels, found.scores
    assert 0 < equal < 117, "else the models show nothing"
    assert (labels.rows, labels.equal) == (117, equal)
    assert labels.b == {name: sum(y["label"] == name for _, y in pairs) for name in labels.b}
    assert sum(rows for _, _, rows in labels.confusion) == 117
    for left, right, rows in labels.confusion:
        assert rows == sum((x["label"], y["label"]) == (left, right) for x, y in pairs)
    assert scores.mean_change == pytest.approx(np.mean(changes))
    assert scores.mean_difference == pytest.approx(np.mean(np.abs(changes)))
    assert scores.largest_difference == pytest.approx(np.abs(changes).max())
    assert sum(scores.differences.values()) == 117
    assert [abs(each.difference) for each in found.changes] == pytest.approx(sorted(np.abs(changes))[:-8:-1])
    first = found.changes[0]
    (row,) = ((x, y) for x, y in pairs if abs(y["score"] - x["score"]) == pytest.approx(abs(first.difference)))
    assert (first.text, first.label_a, first.label_b) == (row[0]["text"], row[0]["label"], row[1]["label"])
    number = int(row[0]["id"].removeprefix("id"))
    assert first.place.endswith(f"{number // 40}.parquet row {number % 40}")


def test_by_a_key_the_same_is_found_though_the_inputs_differ(job, a, b, folder, other):
    whole = pq.read_table(folder / "in").sort_by([("id", "descending")])
    pq.write_table(whole.slice(10), folder / "turned.parquet")
    turned = {**job, "model": {"id": str(other)}, "input": {"path": str(folder / "turned.parquet")}}
    output = run(turned, folder / "turned")
    with pytest.raises(SpecError, match=r"no row is in both, going by file, content and row\n.*--on id"):
        hfbatch.compare(a, output)
    found, expected = hfbatch.compare(a, output, on="id", top=3), hfbatch.compare(a, b)
    assert (found.rows, found.only_a, found.only_b) == (110, 10, 0)
    assert found.changes[0].place.startswith("id id")
    assert found.labels[0].rows == 110 - found.failed_a
    assert found.labels[0].equal_share == pytest.approx(expected.labels[0].equal_share, abs=0.1)


def test_a_key_is_divided_on_disk_and_joined_part_by_part(a, b, monkeypatch):
    expected = hfbatch.compare(a, b, on="id")
    monkeypatch.setattr(pairing, "_PART_BYTES", 1000)
    found = hfbatch.compare(a, b, on="id")
    assert found.labels[0].equal == expected.labels[0].equal == hfbatch.compare(a, b).labels[0].equal
    assert found.rows == 120


def test_a_key_that_is_not_there_or_is_there_twice_is_refused(a, b):
    with pytest.raises(SpecError, match="has no column 'key'\n  fix: the columns there are id, text, label, score"):
        hfbatch.compare(a, b, on="key")
    with pytest.raises(SpecError, match=r"label 'n?[a-z]+' is there twice"):
        hfbatch.compare(a, b, on="label")


def test_memory_is_that_of_a_few_shards(a, b, monkeypatch):
    read = []
    real = Side.read

    def watched(side, receipt, columns):
        read.append(receipt.shard)
        return real(side, receipt, columns)

    monkeypatch.setattr(Side, "read", watched)
    one, other = Side(a), Side(b)
    pairs = list(by_place(one, other, ["label", "error"]))
    assert sum(len(pair.a) for pair in pairs) == 120
    assert len(read) == len(set(read)) == len(one.objects) + len(other.objects), "each object is read once"
    assert pairs[0].a.column_names == ["label", "error"]


def test_a_changed_file_is_named_and_its_rows_are_in_neither(job, a, folder, tmp_path):
    (tmp_path / "in").mkdir()
    output = copied_job(job, folder, tmp_path)
    before = run(output, tmp_path / "before")
    pq.write_table(pa.table({"id": ["x"] * 5, "text": sentences(5)}), tmp_path / "in/1.parquet")
    found = hfbatch.compare(before, run(output, tmp_path / "after"))
    assert (found.rows, found.only_a, found.only_b) == (80, 40, 5)
    assert [file.rpartition("/")[2] for file in found.changed_files] == ["1.parquet"]


def copied_job(job, folder, target):
    for file in (folder / "in").iterdir():
        (target / "in" / file.name).write_bytes(file.read_bytes())
    return {**job, "input": {"path": str(target / "in")}}


def test_rows_that_failed_on_one_side_are_counted_by_code(made, tmp_path):
    output = copied(made, tmp_path)
    with runs_in_this_process():
        hfbatch.retry(str(output.path))
    found = hfbatch.compare(str(made.path), str(output.path))
    assert (found.failed_a, found.failed_b) == (3, 2)
    assert sorted(found.errors) == [("null_input", "null_input", 2), ("postprocess_failed", "", 1)]


def test_columns_of_another_type_are_left_out_and_why(job, a, folder):
    found = hfbatch.compare(a, run({**job, "params": {"top_k": 2}}, folder / "two"))
    assert found.skipped == {"label": "only in a", "score": "only in a", "labels": "only in b"}
    assert (found.labels, [each.column for each in found.values]) == ([], ["truncated"])


def test_of_a_list_of_labels_the_best_counts(job, a, b, folder, other):
    lists = [
        run({**job, "model": {"id": model}, "params": {"top_k": 2}}, folder / f"list{number}")
        for number, model in enumerate((job["model"]["id"], str(other)))
    ]
    found, expected = hfbatch.compare(*lists), hfbatch.compare(a, b)
    assert found.labels[0].confusion == expected.labels[0].confusion
    assert found.scores[0].mean_change == pytest.approx(expected.scores[0].mean_change, abs=1e-5)


def rows_of(a, b, kind=None):
    """A tally's input of one column x."""
    return Rows(*(pa.table({"x": pa.array(each, kind)}) for each in (a, b)), lambda row: (f"row {row}", None))


def tally(kind, name="x", top=2):
    (only,) = tallies_for(name, kind, [name], top)
    return only


def test_vectors_are_compared_by_their_cosine():
    kind = pa.list_(pa.float32(), 2)
    counting = tally(kind)
    assert isinstance(counting, VectorTally)
    counting.add(rows_of([[1, 0], [1, 0], [0, 0], [0, 0], None], [[2, 0], [0, 3], [0, 0], [1, 0], [1, 1]], kind))
    found = counting.result()
    assert (found.rows, found.null_a, found.null_b) == (4, 1, 0)
    assert (found.mean_cosine, found.lowest_cosine) == (0.5, 0.0)
    assert found.cosines["0.9999 to 1"] == 2
    assert [change.place for _, change in counting.top.rows] == ["row 1", "row 3"]


def test_scores_keep_the_rows_that_differ_most_over_all_blocks():
    counting = tally(pa.float32())
    assert isinstance(counting, ScoreTally)
    counting.add(rows_of([0.5, 0.5, 0.5], [0.5, 0.9, 0.3], pa.float32()))
    counting.add(rows_of([0.1, None], [0.45, 0.2], pa.float32()))
    assert [round(change.difference, 3) for _, change in counting.top.rows] == [0.4, 0.35]
    found = counting.result()
    assert (found.rows, found.null_a) == (4, 1)
    assert found.differences["0.2 to 0.5"] == 2
    assert found.mean_change == pytest.approx((0.4 - 0.2 + 0.35) / 4)


def test_labels_without_end_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(tallies, "MOST_LABELS", 3)
    counting = tally(pa.string(), "label")
    assert isinstance(counting, LabelTally)
    counting.read = lambda table: table["x"].combine_chunks()
    names = [f"label {row}" for row in range(10)]
    counting.add(rows_of(names, names))
    found = counting.result()
    assert (found.equal, sum(found.a.values()), len(found.a), found.a[OTHER]) == (10, 10, 4, 7)


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.int32()), pa.struct([("n", pa.int32())]), pa.bool_()])
def test_anything_else_is_equal_or_is_not(kind):
    values = {"string": ["a", "b"], "bool": [True, False]}.get(str(kind)) or (
        [[1, 2], [3]] if pa.types.is_list(kind) else [{"n": 1}, {"n": 2}]
    )
    counting = tally(kind)
    counting.add(rows_of([*values, values[0]], [values[0], values[0], None], kind))
    found = counting.result()
    assert (found.rows, found.equal, found.null_b, found.equal_share) == (2, 1, 1, 0.5)


def test_an_output_that_is_gone_torn_or_none_is_told(a, b, tmp_path, made):
    with pytest.raises(SpecError, match="holds no output of hfbatch"):
        hfbatch.compare(a, str(tmp_path))
    output = copied(made, tmp_path)
    for file in output.objects:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(Damage, match="is damaged"):
        hfbatch.compare(str(made.path), str(output.path))


def test_the_command_shows_tables_json_and_a_page(a, b, tmp_path, capsys):
    command = command_in_this_process(capsys)
    code, out, _ = command("compare", a, b, "--top", 3)
    assert code == 0
    for told in ("rows       120 in both, 0 only in a", "label: a, then b", "rows that differ most", "shift", "errors"):
        assert told in out
    assert_tidy(out)
    page = tmp_path / "page.html"
    code, out, _ = command("compare", a, b, "--json", "--html", page)
    assert Comparison.model_validate(json.loads(out)) == hfbatch.compare(a, b)
    assert page.read_text().startswith("<!DOCTYPE html>")
    code, _, err = command("compare", a, b, "--html", tmp_path / "none/page.html")
    assert (code, "--html: " in err) == (2, True)


def test_a_notebook_shows_a_card_and_nothing_that_comes_in_is_html(a, b):
    found = hfbatch.compare(a, b)
    assert found._repr_html_().count("<svg") == 3
    bad = "<script>alert(1)</script>"
    labels = found.labels[0].model_copy(update={"a": {bad: 3}, "confusion": [(bad, bad, 3)]})
    change = found.changes[0].model_copy(update={"text": bad, "label_a": bad, "place": bad})
    subject = found.a.model_copy(update={"model_id": bad})
    evil = found.model_copy(update={"labels": [labels], "changes": [change], "a": subject, "errors": [(bad, bad, 1)]})
    for text in (evil._repr_html_(), comparison_page(evil)):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
