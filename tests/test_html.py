"""The page and the cards: what they say is what the report says, and nothing in it is more than text."""

import re
from dataclasses import replace

import pytest
from selectolax.lexbor import LexborHTMLParser

from hfbatch import charts
from hfbatch.examine import Examined, Flaw
from hfbatch.html import About, page, report_html
from hfbatch.pictures import throughput, trimmed
from hfbatch.report import RunReport, Seconds
from tests.inline import plan_of

ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></textarea><iframe src=//evil.example>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "javascript:alert(1)",
    "\u2028\u202e\x00\x1b",
)
ATTACK = " ".join(ATTACKS)
ABOUT = About(
    identity={"task": "text-classification", "params": {"top_k": 1, "truncation": None}, "dtype": "float32"},
    started=1_795_226_404.0,
    host="node-7",
    machine={"actors": 2},
    job_file="name: reviews\ntask: text-classification",
    options=["--set", "actors=2"],
)


def report_with(**changes):
    usual = {
        "run_id": "20261121T020004-9f3c1a",
        "job": "reviews",
        "outcome": "success",
        "output": "out/my reviews",
        "generation": "9d1f" * 16,
        "model_id": "owner/model",
        "model_revision": "714eb0fa89d2f80546fda750413ed43d93601a13",
        "rows": 1_204_311,
        "rows_new": 40_960,
        "rows_failed": 412,
        "errors": {"null_input": 400, "too_long": 12},
        "shards": 118,
        "shards_new": 40,
        "tokens": 3_812_003,
        "padded_tokens": 4_102_117,
        "padding_share": 0.0707,
        "batches": 2312,
        "layout": "packed",
        "batch_tokens": 4096,
        "rows_per_s": 101.23,
        "tokens_per_s": 9421.0,
        "forward_share": 0.943,
        "actors": 2,
        "seconds": Seconds(start=13.2, model_load=3.1, tokenise=31.2, forward=771.9, write=9.4, total=431.2),
        "peak_memory_bytes": 1_400_000_000,
        "peak_gpu_bytes": 0,
        "bytes_written": 8_300_000,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "hfbatch": "0.1.0"},
        "token_lengths": [0, 0, 12, 340, 1800, 7200, 14100],
        "labels": {"POSITIVE": 24_012, "NEGATIVE": 14_900},
        "scores": [0] * 10 + [410] * 10,
        "curve": [(0.0, 0), (200.0, 20_000), (404.0, 40_960)],
        "examples": {"null_input": "text is null"},
    }
    return RunReport(**{**usual, **changes})


NOTHING = {
    "rows": 0,
    "rows_new": 0,
    "rows_failed": 0,
    "errors": {},
    "shards": 0,
    "shards_new": 0,
    "tokens": 0,
    "padded_tokens": 0,
    "batches": 0,
    "actors": 0,
    "seconds": Seconds(),
    "token_lengths": [],
    "labels": {},
    "scores": [],
    "curve": [],
    "examples": {},
}


def tree(text):
    return LexborHTMLParser(text)


def titles(parsed):
    """The charts that are drawn, by their titles."""
    return [chart.css_first("title").text().partition(":")[0] for chart in parsed.css("svg.hf-chart")]


def facts(parsed):
    names = [node.text() for node in parsed.css("dt")]
    return dict(zip(names, [node.text() for node in parsed.css("dd")], strict=True))


def test_the_page_says_what_the_report_says():
    parsed = tree(report_html(report_with(), ABOUT))
    assert parsed.css_first("h1").text() == "reviews"
    assert parsed.css_first(".badge").text() == "success"
    assert [node.text() for node in parsed.css(".figure b")] == ["1,204,311", "412", "101.2", "7:11", "94.3%"]
    told = facts(parsed)
    assert told["commit"] == "714eb0fa89d2f80546fda750413ed43d93601a13"
    assert told["generation"] == "9d1f" * 16
    assert (told["task"], told["params"], told["dtype"]) == ("text-classification", "top_k 1", "float32")
    assert (told["host"], told["settings"]) == ("node-7", "actors 2")
    assert told["versions"] == "python 3.11.9, torch 2.13.0, hfbatch 0.1.0"
    assert "2026-11-21 02:00 UTC" in parsed.css_first("header").text()
    assert titles(parsed) == [
        *("Throughput", "Where the time went", "Token lengths", "Padding", "Labels", "Scores", "Errors"),
    ]


def test_failed_rows_stand_with_an_example_and_the_command_that_lists_them():
    parsed = tree(report_html(report_with(), ABOUT))
    rows = [[cell.text() for cell in row.css("td")] for row in parsed.css("#errors tbody tr")]
    assert rows == [["null_input", "400", "text is null"], ["too_long", "12", ""]]
    assert "hfbatch errors 'out/my reviews'" in parsed.css_first("#errors").text()


def test_the_page_says_how_to_run_it_again():
    again = tree(report_html(report_with(), ABOUT)).css_first("#again").text()
    assert "hfbatch run job.yaml --set actors=2\n" in again
    assert "name: reviews\ntask: text-classification" in again
    assert "hfbatch retry 'out/my reviews'" in again
    assert "hfbatch verify 'out/my reviews' --rows 100" in again
    assert "hfbatch retry" not in report_html(report_with(rows_failed=0, errors={}), ABOUT)


def test_what_was_predicted_stands_beside_what_it_took():
    report = report_with(predicted_s=410.0, predicted_by="plan", files=14, files_new=2, files_skipped=12)
    parsed = tree(report_html(report, ABOUT))
    assert "6:50 predicted" in parsed.css_first(".figures").text()
    assert facts(parsed)["predicted"] == "6:50 by the plan; it took 5% more"
    assert facts(parsed)["files"] == "14: 2 new, 12 skipped"
    assert not {"predicted", "files"} & facts(tree(report_html(report_with(), ABOUT))).keys()


def test_a_page_is_one_file_that_asks_for_nothing():
    text = report_html(report_with(), ABOUT)
    parsed = tree(text)
    assert not parsed.css("script, iframe, object, embed, img, form, base")
    assert not [node for node in parsed.css("[src], [href]") if node.attributes.get("href") != "data:,"]
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    policy = parsed.css_first('meta[http-equiv="Content-Security-Policy"]').attributes["content"]
    assert policy.startswith("default-src 'none';")


def test_the_page_is_the_same_with_a_report_of_an_older_hfbatch():
    old = report_with().model_dump(exclude={"token_lengths", "labels", "scores", "curve", "examples"})
    parsed = tree(report_html(RunReport.model_validate(old)))
    assert titles(parsed) == ["Where the time went", "Padding", "Errors"]
    assert "None" not in parsed.body.text()


def shape(text):
    """The elements of a page with their attributes' names: what markup in the data would change."""
    return [(node.tag, sorted(node.attributes)) for node in tree(text).css("*")]


def attacked(safe, evil):
    words = {"job", "output", "model_id", "model_revision", "generation", "run_id", "layout"}
    return [
        report_with(
            **dict.fromkeys(words, text),
            errors={text: 3},
            examples={text: text},
            labels={text: 2},
            versions={text: text},
            outcome="incomplete",
        )
        for text in (safe, evil)
    ]


@pytest.mark.parametrize("attack", [*ATTACKS, ATTACK])
def test_whatever_the_data_holds_changes_no_element_of_a_page(attack):
    harmless = "x" * len(attack)
    about = [
        About({"task": text, "params": {text: text}, "where": text}, None, text, {text: text}, text, [text])
        for text in (harmless, attack)
    ]
    plain, evil = attacked(harmless, attack)
    assert shape(report_html(evil, about[1])) == shape(report_html(plain, about[0]))
    assert shape(evil._repr_html_()) == shape(plain._repr_html_())
    assert shape(page(attack, charts.bars({attack: 1}, attack))) == shape(
        page(harmless, charts.bars({harmless: 1}, harmless))
    )


def test_an_attack_is_shown_as_the_text_it_is():
    _, evil = attacked("", ATTACKS[1])
    parsed = tree(report_html(evil))
    assert parsed.css_first("h1").text() == ATTACKS[1]
    assert parsed.css_first("#errors td:last-child").text() == ATTACKS[1]


def test_a_run_without_rows_has_a_page_without_pictures():
    parsed = tree(report_html(report_with(**NOTHING), About()))
    assert not titles(parsed)
    assert not parsed.css("#errors")
    assert [node.text() for node in parsed.css(".figure b")][:2] == ["0", "0"]
    assert "nan" not in parsed.body.text().lower()


def test_extremes_make_a_page():
    nan = float("nan")
    report = report_with(
        rows_per_s=nan,
        curve=[(0.0, 0), (1e9, 10**15)],
        scores=[0] * 19 + [10**15],
        token_lengths=[1] * 16,
        labels={f"label {number}": number for number in range(50)},
        seconds=Seconds(start=nan, forward=float("inf"), total=nan),
        outcome="error_budget_exceeded",
    )
    parsed = tree(report_html(report, ABOUT))
    assert titles(parsed)[0] == "Throughput"
    assert parsed.css_first(".badge.bad").text() == "error budget exceeded"
    assert "39 others" in parsed.body.text()


def test_one_shard_alone_has_a_level_line():
    assert {rate for _, rate in throughput([(0.0, 0), (10.0, 500)])} == {50.0}
    assert "Throughput" in titles(tree(report_html(report_with(curve=[(0.0, 0), (10.0, 500)]))))


def test_throughput_is_the_slope_of_the_curve_over_its_whole_time():
    rates = throughput([(0.0, 0), (10.0, 100), (20.0, 100), (30.0, 400)])
    assert rates == [(0.0, 10.0), (5.0, 10.0), (15.0, 0.0), (25.0, 30.0), (30.0, 30.0)]
    long = throughput([(float(second), second * 7) for second in range(200)])
    assert len(long) == 62
    assert all(rate == pytest.approx(7) for _, rate in long)
    assert throughput([(0.0, 0), (0.0, 10)]) == []


def test_token_lengths_begin_where_there_are_some_and_end_open():
    assert trimmed([0, 0, 5, 1]) == ([5, 1], ["2", "4", "8"])
    assert trimmed([3]) == ([3], ["0", "1"])
    counts, edges = trimmed([0] * 10 + [1] * 6)
    assert (counts, edges) == ([1] * 6, ["512", "1k", "2k", "4k", "8k", "16k", "more"])


def test_a_report_in_a_notebook_is_a_card_without_a_page_around_it():
    text = report_with()._repr_html_()
    assert not re.search(r"<(html|body|head|script|style|link)\b", text)
    parsed = tree(text)
    assert "reviews 20261121T020004-9f3c1a" in parsed.body.text()
    assert len(titles(parsed)) == 7
    colours = set(re.findall(r"(?<![&\w-])#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", text)))
    assert colours <= {"#35a077", "#d9605a"}, "all else is the notebook's own colour"


@pytest.fixture
def plan(classifier, write_parquet, job_for):
    path = write_parquet("in.parquet", {"text": ["good", "bad"], "<b>kept</b>": [1, 2]})
    return plan_of(job_for("text-classification", classifier, path))


def test_a_plan_in_a_notebook_says_what_a_run_would_do(plan):
    parsed = tree(plan._repr_html_())
    text = parsed.body.text()
    for words in ("Plan of", "1 shard to do", "text-classification", "1 file, 2 rows", "label (string)", "<b>kept</b>"):
        assert words in text, words
    assert titles(parsed) == ["Rows"]
    assert not parsed.css("b b")
    refused = tree(replace(plan, conflict="made by another spec")._repr_html_()).body.text()
    assert "a run would refuse" in refused
    assert "made by another spec" in refused


def test_what_verify_found_in_a_notebook():
    sound = Examined("file:///out", 3, 3, True, 300, 4096, ())
    assert "complete and sound" in tree(sound._repr_html_()).body.text()
    flawed = replace(sound, flaws=(Flaw("data/<x>.parquet", "is gone", "`hfbatch repair`", "shard"),))
    text = tree(flawed._repr_html_()).body.text()
    assert "1 flaw" in text
    assert "data/<x>.parquet" in text
    assert "is gone" in text
