"""`hfbatch plan --sample`: which rows are drawn, what they say of the others, how long a run will take."""

import json
import socket

import numpy as np
import pyarrow as pa
import pytest

import hfbatch
from hfbatch import forecast, sample
from hfbatch.cli import ahead, show
from hfbatch.columns import ROW, ticket_of
from hfbatch.forecast import Speed, expected, former_speed, keep, look_ahead, take
from hfbatch.report import Seconds
from hfbatch.sample import HEAD, draw, look_at
from tests.console import command_in_this_process
from tests.inline import plan_of
from tests.models import WORDS, sentences
from tests.outputs import SHARDS, copied, runs_in_this_process


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/hfbatch/forecasts"


@pytest.fixture
def plan_over(classifier, write_parquet, job_for, tmp_path):
    """A plan over files of texts, which are written once; each file's row groups have `group` rows."""

    def make(*files, group=1000, machine=None, **more):
        for number, texts in enumerate(files):
            columns = {"id": np.arange(len(texts)), "text": texts}
            if not (tmp_path / f"in/{number}.parquet").exists():
                write_parquet(f"in/{number}.parquet", columns, row_group_size=group)
        job = job_for("text-classification", classifier, tmp_path / "in")
        job["input"] |= more
        return plan_of(job, **(machine or {}))

    return make


def places(drawn):
    ticket = ticket_of(drawn.table)
    return [ticket.place(number) for number in drawn.table[ROW].to_pylist()]


def test_the_same_plan_draws_the_same_rows_spread_over_all_files(plan_over):
    files = [sentences(3000, seed=seed) for seed in range(3)]
    drawn, again = draw(plan_over(*files), 400), draw(plan_over(*files), 400)
    assert places(drawn) == places(again)
    assert len(set(places(drawn))) == len(drawn.table) == 400
    assert (drawn.read, drawn.population, drawn.exact, drawn.waiting) == (400, 9000, False, True)
    assert {place.partition(".parquet")[0][-1] for place in places(drawn)} == {"0", "1", "2"}
    assert np.array_equal(np.bincount(drawn.run), np.full(40, 10))


def test_a_sample_larger_than_the_input_is_the_input(plan_over):
    drawn = draw(plan_over(sentences(30), sentences(20)), 2000)
    assert (drawn.read, drawn.population, drawn.exact) == (50, 50, True)
    assert len(set(places(drawn))) == 50


def test_of_a_row_group_within_a_stretch_only_the_head_is_read(plan_over, monkeypatch):
    read = []
    monkeypatch.setattr(sample, "RUNS", 2)
    plan = plan_over(["good"] * 40_000, group=10_000, machine={"shard_rows": 40_000})
    real = sample.numbered_batches

    def watched(job, pieces, refs, schema):
        read.extend(pieces)
        return real(job, pieces, refs, schema)

    monkeypatch.setattr(sample, "numbered_batches", watched)
    draw(plan, 20)
    assert len(read) == 2
    assert all(piece.start % 10_000 < HEAD for piece in read)
    assert read[0].start < 20_000 <= read[1].start


def test_where_lets_few_through_so_more_is_read(plan_over):
    plan = plan_over(sentences(4000), where="id < 400")
    drawn = draw(plan, 200)
    assert len(drawn.table) >= 100
    assert drawn.read > 800
    assert set(drawn.table.column_names) >= {"text", "id"}
    assert look_at(plan, drawn).rows_to_do == pytest.approx(400, rel=0.2)


def test_a_whole_input_is_counted_exactly(plan_over):
    texts = ["good", "good movie", "good", None, "bad " * 200]
    plan = plan_over(texts)
    look = look_at(plan, draw(plan, 100))
    assert (look.rows, look.rows_to_do, look.rows_skipped, look.tokens_spread) == (5, 5, 0, 0)
    assert look.tokens == 3 + 4 + 3 + 64  # with [CLS] and [SEP]; the last one is cut
    assert look.token_lengths == [0, 0, 3, 0, 0, 0, 1]
    assert (look.tokens_longest, look.truncated_share, look.duplicate_share) == (64, 0.2, 0.2)
    assert look.errors == {"null_input": 1}


def test_an_estimate_lies_within_its_spread(plan_over):
    texts = [" ".join(WORDS[: 1 + row // 200]) for row in range(6000)]  # longer and longer, as sorted files are
    plan = plan_over(texts[:3000], texts[3000:])
    everything = look_at(plan, draw(plan, 6000))
    for rows in (200, 1000):
        look = look_at(plan, draw(plan, rows))
        assert abs(look.tokens - everything.tokens) <= look.tokens_spread < everything.tokens / 2


def test_padding_is_counted_as_it_comes_and_as_it_is_cut(plan_over):
    plan = plan_over(["good", " ".join(["good"] * 30)] * 64, machine={"max_batch_tokens": 1024})
    look = look_at(plan, draw(plan, 1000))
    assert look.padding_naive == pytest.approx(1 - (3 + 32) / 64, abs=1e-4)
    assert look.padding_budget < 0.05
    assert look.batch_tokens == 1024
    assert look_at(plan, draw(plan, 1000), 512).batch_tokens == 512


def test_an_input_without_rows_has_nothing_to_say(plan_over):
    plan = plan_over(pa.array([], pa.string()))
    look, made = look_ahead(plan, 100)
    assert (look.rows, look.tokens, look.token_lengths, made) == (0, 0, [], None)
    ahead.ahead(look, made, None)


@pytest.fixture
def speed():
    return Speed(9.0, 1.0, 1000.0, 100.0, "packed", 2048, "trial")


def test_a_forecast_is_the_start_and_the_tokens_at_the_speed_and_may_have_a_price(plan_over, speed):
    plan = plan_over(sentences(50), machine={"cost_per_hour": 36})
    look = look_at(plan, draw(plan, 100)).model_copy(update={"tokens": 5000, "tokens_spread": 500})
    made = forecast.forecast(look, speed, plan.machine)
    assert (made.seconds, made.spread_s, made.start_s, made.cost) == (15.0, 0.5, 9.0, 0.15)
    assert forecast.forecast(look, speed, plan_of_none()).cost is None


def plan_of_none():
    return hfbatch.load_machine(None)


def test_what_the_plan_foresaw_is_kept_for_that_run_alone_and_once(plan_over, speed, cache):
    plan = plan_over(sentences(50))
    made = forecast.forecast(look_at(plan, draw(plan, 100)), speed, plan.machine)
    keep(plan, made)
    assert take(plan_over(sentences(50), machine={"max_batch_rows": 7})) is None
    assert expected(plan) == (made.seconds, "plan")
    assert take(plan) is None
    assert not list(cache.iterdir())


def test_forecasts_do_not_pile_up(plan_over, speed, cache, monkeypatch):
    monkeypatch.setattr(forecast, "_KEPT", 2)
    plan = plan_over(sentences(5))
    made = forecast.forecast(look_at(plan, draw(plan, 100)), speed, plan.machine)
    for rows in range(1, 5):
        keep(plan_over(sentences(5), machine={"max_batch_rows": rows}), made)
    assert len(list(cache.iterdir())) == 2


def test_a_broken_cache_stops_nobody(plan_over, speed, tmp_path, monkeypatch):
    plan = plan_over(sentences(5))
    made = forecast.forecast(look_at(plan, draw(plan, 100)), speed, plan.machine)
    keep(plan, made)
    forecast._place(plan).write_text("[]")
    assert take(plan) is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep(plan, made)
    assert take(plan) is None


@pytest.fixture
def begun(plan_over):
    """A plan of which a run has done all, and one of the same generation that has more to do."""
    plan = plan_over(sentences(300))
    with runs_in_this_process():
        hfbatch.run(plan)
    return plan_over(sentences(300), sentences(700, seed=5))


def test_a_former_run_here_and_with_such_a_machine_says_how_fast(begun, plan_over):
    files = (sentences(300), sentences(700, seed=5))
    speed = former_speed(begun)
    assert speed.source.startswith("run 20")
    assert min(speed.start_s, speed.tokens_per_s, speed.rows_per_s) > 0
    assert former_speed(plan_over(*files, machine={"grace_s": 1, "cost_per_hour": 3})) == speed
    assert former_speed(plan_over(*files, machine={"threads_per_actor": 1})) is None
    look, made = look_ahead(begun, 2000)
    assert (look.rows_skipped, look.rows_to_do) == (300, 700)
    assert made.seconds == pytest.approx(speed.start_s + look.tokens / speed.tokens_per_s + speed.end_s, abs=0.06)


def test_a_former_run_elsewhere_says_nothing(begun, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert former_speed(begun) is None


def test_predicted_and_actual_stand_in_the_report(begun, capsys):
    _, made = look_ahead(begun, 2000)
    with runs_in_this_process():
        report = hfbatch.run(begun)
    assert (report.predicted_s, report.predicted_by) == (made.seconds, "plan")
    show.report(report.model_copy(update={"predicted_s": 12.0, "seconds": Seconds(total=10.0)}))
    assert "12.0 s by `plan --sample`; it took 10.0 s, the prediction was 20% over" in capsys.readouterr().out


def test_without_a_plan_the_run_before_foretells(begun):
    with runs_in_this_process():
        report = hfbatch.run(begun)
    assert report.predicted_by == "former run"
    assert report.predicted_s > 0


def test_the_command_shows_it_and_writes_nothing_to_the_output(made, tmp_path, capsys):
    output = copied(made, tmp_path / "copy")
    before = output.state()
    (tmp_path / "job.json").write_text(json.dumps(output.job))
    command = command_in_this_process(capsys)
    machine = ["--set", f"shard_rows={SHARDS['shard_rows']}"]
    code, out, _ = command("plan", tmp_path / "job.json", "--sample", 2000, "--no-time", *machine)
    assert code == 0
    assert "sample      50 rows, all that there are" in out
    assert "to do       0 rows; 50 are committed, and skipped" in out
    assert "null_input 2" in out
    assert "padding" in out
    code, out, _ = command("plan", tmp_path / "job.json", "--sample", 10, "--no-time", "--json", *machine)
    assert json.loads(out)["sample"]["rows_skipped"] == 50
    assert output.state() == before


def test_lengths_are_shown_as_bars():
    assert ahead.lengths([1, 0, 2, 6]).splitlines()[-1].split() == ["5", "to", "8", "#" * 30, "6", "(66.7%)"]
    assert [line.strip().split("  ")[0] for line in ahead.lengths([1] * 16).splitlines()[-2:]] == [
        "8,193 to 16,384",
        "over 16,384",
    ]
    assert len(ahead.lengths([0, 0, 4, 0, 1]).splitlines()) == 3, "none for what comes before the shortest"
    assert ahead.lengths([]) == "none"
