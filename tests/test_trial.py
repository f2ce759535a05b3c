"""How fast the first run of a job will be: parts of a sample through the model, in an actor that Ray starts for it."""

import pytest

import hfbatch
from hfbatch.forecast import look_ahead
from hfbatch.model import Predict
from hfbatch.preprocess import Preprocess
from hfbatch.sample import draw
from hfbatch.trial import pace_of
from tests.inline import plan_of
from tests.models import sentences


@pytest.fixture
def plan(classifier, write_parquet, job_for, tmp_path, monkeypatch):
    """Of 3,000 rows; forecasts are kept aside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return plan_of(job_for("text-classification", classifier, write_parquet("in.parquet", {"text": sentences(3000)})))


def test_a_pace_is_that_of_the_last_of_growing_parts(plan):
    predict, seen = Predict(plan.job.step, plan.machine, 1, Preprocess(plan.job.step)), []
    rows = draw(plan, 120).table

    def step(part):
        seen.append(len(part))
        return predict(part)

    tokens_per_s, rows_per_s = pace_of(step, rows)
    assert seen == [16, 16, 32, len(rows) - 64]
    assert tokens_per_s > rows_per_s > 0, "a row has several tokens"
    seen.clear()
    pace_of(step, rows, seconds=0)
    assert seen == [16], "a part that took too long is the last one"


@pytest.mark.slow
def test_a_first_run_is_timed_with_an_actor_of_its_own_and_its_report_says_how_far_off_that_was(plan):
    look, made = look_ahead(plan, 500)
    assert made.source == "trial"
    assert made.start_s > 0
    assert made.seconds > made.start_s + 0.98 * look.tokens / made.tokens_per_s
    report = hfbatch.run(plan)
    assert (report.predicted_s, report.predicted_by) == (made.seconds, "plan")
