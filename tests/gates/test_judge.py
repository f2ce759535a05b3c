"""What each gate finds out of an output and the last one, and what of the section `gates:` is refused beforehand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch.errors import Damage, SpecError
from hfbatch.gates import judge as gates_module
from hfbatch.gates import shift
from hfbatch.gates.check import check_gates
from hfbatch.gates.golden import Agreement
from hfbatch.gates.judge import Side, count, judged
from hfbatch.gates.spec import GatesSpec
from hfbatch.load import load_job
from hfbatch.store import LocalStore

SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "text": pa.string(),
        "label": pa.string(),
        "score": pa.float32(),
        "truncated": pa.bool_(),
        "vector": pa.list_(pa.float32(), 2),
        "error": pa.string(),
    }
)
NOW = {
    "label": ["good"] * 6 + ["bad"] * 3 + [None],
    "score": [0.9] * 5 + [0.5] * 4 + [None],
    "truncated": [True] + [False] * 9,
}
LAST = {"label": ["good"] * 5 + ["bad"] * 5, "score": [0.9] * 5 + [0.5] * 5, "truncated": [False] * 10}


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def side(store, name, columns, parts=2, schema=SCHEMA, **more):
    """An output of these columns in some objects; of those that are not given all values are null."""
    rows = len(next(iter(columns.values())))
    whole = {entry.name: columns.get(entry.name, [None] * rows) for entry in schema}
    table = pa.table(whole, schema)
    objects = []
    for part in range(parts):
        objects.append(f"data/{name}-{part}.parquet")
        path = store.root / objects[-1]
        path.parent.mkdir(exist_ok=True)
        cut = rows * part // parts
        pq.write_table(table.slice(cut, rows * (part + 1) // parts - cut), path, write_page_checksum=True)
    return Side(rows, more.pop("failed", 0), objects, schema, ("truncated",), **more)


def found(store, gates, now=NOW, last=LAST, agreement=None):
    """Name -> gate, of two outputs."""
    spec = GatesSpec.model_validate(gates)
    sides = [
        columns if columns is None or isinstance(columns, Side) else side(store, name, columns)
        for name, columns in (("now", now), ("last", last))
    ]
    count(store, spec, *sides, agreement)
    return {gate.name: gate for gate in judged(spec, *sides, agreement, {})}


def one(store, gates, **sides):
    [gate] = found(store, gates, **sides).values()
    return gate


@pytest.mark.parametrize(
    ("gates", "value", "bound"),
    [
        ({"min_rows": 10}, 10, "at least 10"),
        ({"rows_against_last": 0.9}, 1.0, "at least 0.9"),
        ({"rows_against_last": {"min": 0.9, "max": 1.5}}, 1.0, "0.9 to 1.5"),
        ({"error_share": 0.2}, 0.0, "at most 0.2"),
        ({"truncated_share": 0.2}, 0.1, "at most 0.2"),
        ({"null_share": {"label": 0.2}}, 0.1, "at most 0.2"),
        ({"null_share": {"vector": 1}}, 1.0, "at most 1"),
        ({"mean": {"score": 0.5}}, (0.9 * 5 + 0.5 * 4) / 9, "at least 0.5"),
        ({"quantile": {"score": {"0.5": {"max": 0.95}}}}, 0.9, "at most 0.95"),
        ({"label_share": {"label": {"bad": 0.5}}}, 3 / 9, "at most 0.5"),
        ({"label_share": {"label": {"none of it": {"max": 0}}}}, 0.0, "at most 0"),
        ({"label_share": {"truncated": {"true": 0.2}}}, 0.1, "at most 0.2"),
    ],
    ids=str,
)
def test_a_gate_tells_its_value_and_its_bound(store, gates, value, bound):
    gate = one(store, gates)
    assert (gate.value, gate.bound, gate.passed) == (pytest.approx(value), bound, True)


@pytest.mark.parametrize(
    "gates",
    [
        {"min_rows": 11},
        {"rows_against_last": 1.1},
        {"truncated_share": 0.05},
        {"null_share": {"label": 0.05}},
        {"mean": {"score": {"max": 0.5}}},
        {"quantile": {"score": {"0.1": {"min": 0.6}}}},
        {"label_share": {"label": {"good": {"min": 0.7}}}},
        {"shift": {"label": 0.01}},
        {"shift": {"score": {"jensen_shannon": 0.0001}}},
    ],
    ids=str,
)
def test_a_value_outside_its_bounds_fails_the_gate(store, gates):
    gate = one(store, gates)
    assert not gate.passed
    assert gate.value is not None


def test_a_value_at_its_bound_passes(store):
    assert one(store, {"error_share": 0.3}, now=side(store, "now", NOW, failed=3)).passed
    assert not one(store, {"error_share": 0.29}, now=side(store, "now", NOW, failed=3)).passed


def test_shift_is_measured_against_the_last_run_in_the_measure_that_was_asked_for(store):
    gates = found(store, {"shift": {"label": {"psi": 9, "jensen_shannon": 0.5}, "score": 9}})
    assert list(gates) == ["shift.label.psi", "shift.label.jensen_shannon", "shift.score.psi"]
    by_hand = shift.psi(*shift.compared(*(counted(rows["label"]) for rows in (NOW, LAST))))
    assert gates["shift.label.psi"].value == pytest.approx(by_hand)
    assert 0 < gates["shift.label.jensen_shannon"].value < 1
    assert all(gate.value == 0 for gate in found(store, {"shift": {"label": 0.1, "score": 0.1}}, now=LAST).values())


def counted(labels):
    made = shift.Labels()
    made.add({name: labels.count(name) for name in set(labels) - {None}})
    return made


def test_objects_that_both_outputs_have_are_read_once_and_count_in_both(store, monkeypatch):
    shared = side(store, "shared", LAST)
    new = side(store, "new", {"label": ["bad"] * 10})
    now = Side(20, 0, [*shared.objects, *new.objects], SCHEMA)
    opened = []
    real = LocalStore.open_input
    monkeypatch.setattr(LocalStore, "open_input", lambda self, name: opened.append(name) or real(self, name))
    gates = found(store, {"label_share": {"label": {"bad": 1}}, "shift": {"label": 9}}, now=now, last=shared)
    assert gates["label_share.label.bad"].value == 0.75
    assert gates["shift.label.psi"].value > 0
    assert sorted(opened) == sorted(now.objects)


def test_without_a_last_run_gates_against_it_pass_and_say_so(store):
    gates = found(store, {"rows_against_last": 0.9, "shift": {"label": 0.1}}, last=None)
    assert [(gate.value, gate.passed, gate.note) for gate in gates.values()] == [(None, True, "no last run")] * 2


def test_a_column_that_the_last_run_did_not_have_is_compared_with_nothing(store):
    before = pa.schema({"label": pa.float32(), "error": pa.string()})
    last = side(store, "last", {"label": [0.5] * 10}, schema=before)
    gates = found(store, {"shift": {"label": 0.1, "score": 0.1}}, last=last)
    assert all(gate.passed and "no such column" in gate.note for gate in gates.values())


def test_a_last_run_that_is_half_gone_passes_no_gate(store):
    last = Side(10, 0, (), pa.schema([]), problem="2 objects are gone")
    gates = found(store, {"rows_against_last": 0.9, "shift": {"label": 9}}, last=last)
    assert [(gate.passed, gate.note) for gate in gates.values()] == [(False, "2 objects are gone")] * 2


@pytest.mark.parametrize(
    "gates",
    [
        {"mean": {"score": 0}},
        {"quantile": {"score": {"0.5": 0}}},
        {"label_share": {"label": {"a": 1}}},
        {"shift": {"label": 9}},
    ],
)
def test_where_there_is_no_value_the_gate_is_not_passed(store, gates):
    gate = one(store, gates, now={"label": [None] * 3})
    assert (gate.value, gate.passed, gate.note) == (None, False, "there are no values")


def test_texts_that_are_no_labels_fail_the_gate_and_say_so(store, monkeypatch):
    monkeypatch.setattr(shift, "MOST_LABELS", 5)
    gates = found(
        store,
        {"shift": {"text": 9}, "label_share": {"text": {"a": 1}}},
        now={"text": list("abcdefghij")},
        last={"text": ["a"] * 10},
    )
    assert all(not gate.passed and "these are no labels" in gate.note for gate in gates.values())


def test_the_golden_file_is_compared_and_rows_it_lacks_fail_it_whatever_the_accuracy(store):
    gates = {"golden": {"path": "g.csv", "key": "id", "min_accuracy": 0.5, "min_f1": 0.5}}
    now = {"id": [1, 2, 3], "label": ["a", "b", "b"]}
    right = found(store, gates, now=now, agreement=Agreement({"1": "a", "2": "b", "3": "a"}))
    assert right["golden.accuracy"].value == pytest.approx(2 / 3)
    assert right["golden.f1"].passed
    lacking = found(store, gates, now=now, agreement=Agreement({"1": "a", "9": "b"}))
    assert lacking["golden.accuracy"].value == 1
    assert not lacking["golden.accuracy"].passed
    assert (
        "1 of 2 golden rows are not in the output: id '9'; put their inputs under input.path"
        in lacking["golden.accuracy"].note
    )


def test_secrets_of_paths_and_queries_are_not_told():
    spec = GatesSpec.model_validate(
        {
            "golden": {"path": "https://user:word@x.org/g.csv?sig=s3cret", "key": "id", "min_accuracy": 0},
            "sql": {"q": "SELECT 'https://user:word@x.org/?token=s3cret' = 'x'"},
        }
    )
    told = str(judged(spec, Side(0, 0, (), SCHEMA), None, Agreement({}), {"q": (None, "at https://a:word@x.org/")}))
    assert "word" not in told
    assert "s3cret" not in told
    assert "***" in told


def test_a_damaged_object_is_damage_with_its_name(store):
    now = side(store, "now", NOW)
    (store.root / now.objects[0]).write_bytes(b"torn")
    with pytest.raises(Damage, match=r"now-0.parquet: is damaged .*hfbatch repair"):
        found(store, {"mean": {"score": 0}}, now=now)


def test_objects_are_read_a_few_at_a_time_and_none_is_left_out(store, monkeypatch):
    monkeypatch.setattr(gates_module, "AT_ONCE", 2)
    now = side(store, "now", {"label": ["a"] * 7}, parts=7)
    one(store, {"label_share": {"label": {"a": 1}}}, now=now)
    assert now.columns["label"].rows == 7


# what is refused beforehand


JOB = """\
task: text-classification
model: {id: owner/name}
input: {path: data}
output: {path: out}
gates:
"""


def refused(tmp_path, gates):
    """The problems of a job file whose section `gates:` has these lines, each as text."""
    file = tmp_path / "job.yaml"
    file.write_text(JOB + "".join(f"  {line}\n" for line in gates.splitlines()))
    with pytest.raises(SpecError) as error:
        check_gates(load_job(file), SCHEMA, keep=["id", "text"])
    return [str(problem).replace(str(file), "job.yaml") for problem in error.value.problems]


@pytest.mark.parametrize(
    ("gates", "wanted"),
    [
        ("error_share: 5", "job.yaml:6:3: gates.error_share: must be at most 1, got '5'"),
        ("error_shar: 0.5", "fix: write 'error_share'"),
        ("mean: {score: {}}", "min or max is missing"),
        ("mean: {score: {min: 2, max: 1}}", "min 2 is over max 1"),
        ("mean: {score: {mni: 1}}", "fix: write 'min'"),
        ("quantile: {score: {50: 0.5}}", "'50' is no share of the rows: write 0.5 for the median"),
        ("golden: {path: g.csv, key: id}", "min_accuracy or min_f1 is missing"),
        ("shift: {label: {}}", "psi or jensen_shannon is missing"),
        ("sql: SELECT true", "expected a list or a mapping (key: value), got 'SELECT true'"),
        ("golden: {path: 's3://key:word@b/g.csv', key: id, min_accuracy: 1}", "the URL holds credentials"),
        ("null_share: {lable: 0.1}", "the output has no column 'lable'"),
        ("mean: {label: 0.1}", "column 'label' is string, the gate takes a number"),
        ("label_share: {score: {a: 0.1}}", "column 'score' is float32, the gate takes text or boolean"),
        ("shift: {vector: 0.1}", "column 'vector' is 2 x float32, the gate takes text, boolean or a number"),
        ("golden: {path: gone.csv, key: id, min_accuracy: 1}", "gone.csv does not exist"),
        ("golden: {path: gone.csv, key: vector, min_accuracy: 1}", "column 'vector' is 2 x float32"),
        ("sql: [SELECT true, SELEC 1]", "job.yaml:6:22: gates.sql.1: Parser Error"),
        (
            "sql: {few: SELECT rows > 1 FROM output}",
            'job.yaml:6:9: gates.sql.few: Binder Error: Referenced column "rows"',
        ),
    ],
)
def test_a_gate_that_could_never_be_judged_is_told_with_its_place(tmp_path, gates, wanted):
    assert wanted in "\n".join(refused(tmp_path, gates))


def test_all_of_them_are_told_at_once(tmp_path):
    lines = "mean: {label: 1}\nshift: {x: 1}\nsql:\n  a: SELECT 1"
    assert len(refused(tmp_path, lines)) == 3


def test_a_truncated_column_of_the_input_is_not_the_tasks(tmp_path):
    spec = load_job(
        {
            "task": "text-classification",
            "model": {"id": "a/b"},
            "input": {"path": "x"},
            "output": {"path": "y"},
            "gates": {"truncated_share": 0.1},
        }
    )
    check_gates(spec, SCHEMA, keep=["text"])
    with pytest.raises(SpecError, match="nothing is cut"):
        check_gates(spec, SCHEMA, keep=["truncated"])


def test_a_number_alone_is_the_most_of_what_should_be_small_and_the_least_of_the_rest(store):
    asked = {
        "error_share": 0.1,
        "null_share": {"label": 1},
        "label_share": {"label": {"good": 1}},
        "shift": {"label": 9},
    }
    assert all(gate.bound.startswith("at most") for gate in found(store, asked).values())
    asked = {"min_rows": 1, "rows_against_last": 0.1, "mean": {"score": 0}, "quantile": {"score": {"0.5": 0}}}
    assert all(gate.bound.startswith("at least") for gate in found(store, asked).values())
