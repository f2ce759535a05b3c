import json
import platform

import pytest

from hfbatch.records import Receipt
from hfbatch.report import PACKAGES, RunReport, make_report, versions

ABOUT = {
    "job": "reviews",
    "outcome": "success",
    "output": "out",
    "generation": "f" * 64,
    "model_id": "m",
    "model_revision": "sha256:0",
}


def receipt(shard, run_id="r2", rows=100, errors=None, data="data/x.parquet", **stats):
    usual = {"actor": "host:1", "first_s": 110.0, "last_s": 120.0, "forward_s": 4.0, "tokens": 900}
    usual |= {"padded_tokens": 1000, "batches": 3, "peak_rss": 5e8, "load_s": 0.0, "read_s": 0.25, "write_s": 0.5}
    usual |= {"layout": "packed", "budget": 2048.0}
    return Receipt(shard, "f" * 64, data, rows, 2000, "", errors or {}, {**usual, **stats}, run_id)


def report_of(receipts, started=100.0, ended=150.0):
    return make_report(ABOUT, receipts, "r2", started, ended)


def test_rows_and_errors_count_the_whole_output_and_the_rest_this_run():
    made = report_of(
        [
            receipt("a", "r1", errors={"null_input": 1, "too_long": 9}),
            receipt("b", errors={"null_input": 9}),
            receipt("c", rows=40),
        ]
    )
    assert (made.rows, made.rows_new, made.rows_failed, made.shards, made.shards_new) == (240, 140, 19, 3, 2)
    assert list(made.errors.items()) == [("null_input", 10), ("too_long", 9)], "the most frequent first"
    assert (made.tokens, made.padded_tokens, made.padding_share, made.batches) == (1800, 2000, 0.1, 6)
    assert (made.layout, made.batch_tokens) == ("packed", 2048)
    assert made.bytes_written == 4000
    assert (made.run_id, made.job, made.outcome) == ("r2", "reviews", "success")


def test_rates_count_from_the_first_batch_to_the_last():
    made = report_of([receipt("a", first_s=110, last_s=115), receipt("b", first_s=114, last_s=130)])
    assert made.rows_per_s == 10.0
    assert made.tokens_per_s == 90.0
    assert made.seconds.start == 10.0
    assert made.seconds.total == 50.0


def test_seconds_are_summed_over_workers_and_memory_is_the_largest():
    made = report_of([receipt("a", load_s=1.5), receipt("b", peak_rss=9e8, peak_gpu=7, tokenise_s=0.125)])
    assert (made.seconds.model_load, made.seconds.read, made.seconds.write, made.seconds.forward) == (1.5, 0.5, 1, 8)
    assert made.seconds.tokenise == 0.125
    assert (made.peak_memory_bytes, made.peak_gpu_bytes) == (900_000_000, 7)


def test_the_forward_share_is_each_actors_own_and_then_their_mean():
    receipts = [
        receipt("a", actor="h:1", first_s=0, last_s=10, forward_s=5),
        receipt("b", actor="h:1", first_s=10, last_s=20, forward_s=10),  # 15 of 20
        receipt("c", actor="h:2", first_s=4, last_s=8, forward_s=1),  # 1 of 4
    ]
    made = report_of(receipts)
    assert made.actors == 2
    assert made.forward_share == pytest.approx((0.75 + 0.25) / 2)


@pytest.mark.parametrize("receipts", [[], [receipt("a", "r1")]], ids=["nothing at all", "all by an earlier run"])
def test_a_run_that_did_nothing_reports_zeros(receipts):
    made = report_of(receipts)
    assert (made.rows_new, made.tokens, made.rows_per_s, made.tokens_per_s, made.forward_share) == (0, 0, 0, 0, 0)
    assert (made.padding_share, made.actors, made.peak_memory_bytes, made.bytes_written) == (0, 0, 0, 0)
    assert made.rows == sum(each.rows for each in receipts)


def test_a_shard_without_rows_counts_as_a_shard_and_breaks_no_rate():
    made = report_of([receipt("a", rows=0, data=None, tokens=0, padded_tokens=0, batches=0, forward_s=0.0)])
    assert (made.shards_new, made.rows_new, made.padding_share, made.rows_per_s) == (1, 0, 0, 0)


def test_a_report_survives_json_and_is_frozen():
    made = report_of([receipt("a")])
    assert RunReport.model_validate_json(json.dumps(made.model_dump())) == made
    with pytest.raises(ValueError, match="frozen"):
        made.rows = 1


def test_versions_name_what_affects_values_and_speed():
    found = versions()
    assert found.keys() == {"python", *PACKAGES}
    assert found["python"] == platform.python_version()
    import torch

    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__


def test_what_the_pictures_show_is_added_up_over_the_shards_of_the_run():
    first = {"token_lengths": [0, 2], "labels": {"good": 2, "bad": 1}, "scores": [1] * 20}
    second = {"token_lengths": [0, 1, 4], "labels": {"good": 3}, "scores": [2] * 20, "examples": {"too_long": "812"}}
    made = report_of(
        [
            receipt("a", "r1", labels={"ugly": 9}, examples={"null_input": "text is null"}),
            receipt("b", first_s=110, last_s=120, **first),
            receipt("c", first_s=120, last_s=140, **second),
        ]
    )
    assert made.token_lengths == [0, 3, 4]
    assert list(made.labels.items()) == [("good", 5), ("bad", 1)]
    assert made.scores == [3] * 20
    assert made.curve == [(0.0, 0), (10.0, 100), (30.0, 200)]
    assert made.examples == {"null_input": "text is null", "too_long": "812"}, "errors are those of the whole output"


def test_a_report_of_before_there_were_pictures_still_loads():
    new = {"token_lengths", "labels", "scores", "curve", "examples"}
    old = report_of([receipt("a")]).model_dump(exclude=new)
    assert RunReport.model_validate(old).labels == {}
