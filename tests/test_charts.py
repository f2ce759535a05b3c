"""SVG made of numbers: what is drawn has the numbers' proportions, and whatever text comes in stays text."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from hfbatch import charts
from hfbatch.words import brief, duration

SVG = "{http://www.w3.org/2000/svg}"
BAD_TEXT = "<script>alert('1')</script>&\"\x00\x1b[31m\u202e"
DRAWN = {
    "line": charts.line([(0, 1), (10, 3), (20, 2)], "Throughput", unit="rows/s"),
    "histogram": charts.histogram([1, 4, 2], ["0", "1", "2", "3"], "Lengths"),
    "bars": charts.bars({"yes": 3, "no": 1}, "Labels"),
    "stacked": charts.stacked({"tokens": 9, "padding": 1}, "Padding"),
}


def parsed(svg):
    return ElementTree.fromstring(svg)


def words(svg):
    """The visible words, in order, without the tips."""
    return [node.text for node in parsed(svg).iter(f"{SVG}text")]


def rects(svg):
    """(left, top, width, height) of each rectangle: percent, pixels, percent, pixels."""
    names = ("x", "y", "width", "height")
    return [tuple(float(each.get(n).rstrip("%")) for n in names) for each in parsed(svg).iter(f"{SVG}rect")]


@pytest.mark.parametrize("svg", DRAWN.values(), ids=DRAWN)
def test_a_chart_is_an_image_that_says_in_words_what_it_shows(svg):
    root = parsed(svg)
    assert (root.tag, root.get("role"), root.get("width")) == (f"{SVG}svg", "img", "100%")
    assert root[0].tag == f"{SVG}title"
    assert len(root[0].text) > 15
    assert words(svg)[0] in root[0].text


@pytest.mark.parametrize("svg", DRAWN.values(), ids=DRAWN)
def test_words_and_axes_have_the_colour_of_the_text_around_them(svg):
    colours = {node.get(name) for node in parsed(svg).iter() for name in ("fill", "stroke")} - {None, "none"}
    assert all(colour == "currentColor" or colour.startswith("var(--hf-") for colour in colours)
    assert parsed(svg).get("fill") == "currentColor"


@pytest.mark.parametrize(
    "svg",
    [
        charts.line([(0, 1), (10, 3)], BAD_TEXT, about=BAD_TEXT, unit=BAD_TEXT),
        charts.histogram([1], [BAD_TEXT, BAD_TEXT], BAD_TEXT, about=BAD_TEXT),
        charts.bars({BAD_TEXT: 1}, BAD_TEXT, about=BAD_TEXT),
        charts.stacked({BAD_TEXT: 1}, BAD_TEXT, about=BAD_TEXT, show=lambda value, total: BAD_TEXT),
    ],
    ids=DRAWN,
)
def test_text_stays_text(svg):
    assert {node.tag for node in parsed(svg).iter()} <= {
        SVG + name for name in ("svg", "title", "text", "rect", "line", "polygon", "polyline")
    }
    assert "<script>alert('1')</script>&\"  [31m " in words(svg)[0]


def test_a_line_goes_from_edge_to_edge_and_as_high_as_its_values():
    (drawn,) = parsed(DRAWN["line"]).iter(f"{SVG}polyline")
    assert drawn.get("points") == "0.0,66.67 500.0,0.00 1000.0,33.33"
    assert "up to 3 rows/s, over 20 s" in DRAWN["line"]


def test_times_below_a_line_are_round():
    assert words(charts.line([(0, 1), (55, 1)], "x"))[-6:] == ["0 s", "10 s", "20 s", "30 s", "40 s", "50 s"]
    assert words(charts.line([(100, 1), (1000, 1)], "x"))[-4:] == ["0:00", "5:00", "10:00", "15:00"]
    assert words(charts.line([(0, 1), (14 * 86400, 1)], "x"))[-1] == "288:00:00"
    assert words(charts.line([(0, 1), (0.5, 1)], "x"))[-1] == "0 s"


def test_columns_are_as_high_as_their_counts_and_stand_side_by_side():
    drawn = rects(DRAWN["histogram"])
    assert [height for *_, height in drawn] == [33.0, 132.0, 66.0]
    assert {top + height for _, top, _, height in drawn} == {180.0}
    assert all(left[0] + left[2] <= right[0] for left, right in pairwise(drawn))
    assert "7 in all, most of them from 1 to 2" in DRAWN["histogram"]
    assert "1 to 2: 4 (57.1%)" in DRAWN["histogram"]


def test_a_count_of_one_among_millions_is_still_seen():
    assert min(height for *_, height in rects(charts.histogram([1, 10**6], ["a", "b", "c"], "x"))) >= 1


def test_many_edges_have_only_some_of_their_words():
    edges = [str(number) for number in range(21)]
    assert words(charts.histogram([1] * 20, edges, "x"))[-11:] == "0 2 4 6 8 10 12 14 16 18 20".split()


def test_bars_have_the_length_of_their_values_and_share_in_words():
    lengths = [width for _, _, width, _ in rects(DRAWN["bars"])]
    assert lengths == [100, 100, 100, 33.33], "a track and a bar each"
    assert words(DRAWN["bars"])[1:] == ["yes", "3 (75.0%)", "no", "1 (25.0%)"]


def test_what_is_too_many_bars_is_one_bar():
    svg = charts.bars({f"label {number}": 10.0 for number in range(30)}, "x", most=4)
    assert words(svg)[1::2] == ["label 0", "label 1", "label 2", "27 others"]
    assert words(svg)[-1] == "270 (90.0%)"


def test_a_long_name_is_cut_and_whole_in_its_tip():
    svg = charts.bars({"x" * 100: 1}, "Labels")
    assert words(svg)[1] == "x" * 29 + "…"
    assert f"<title>{'x' * 100}</title>" in svg
    assert words(charts.bars({"好" * 100: 1}, "Labels"))[1] == "好" * 14 + "…", "each as wide as two others"


def test_the_parts_of_a_stacked_bar_fill_it():
    (first, _, second, _) = rects(DRAWN["stacked"])
    assert (first[0], first[2], second[0], second[2]) == (0, 90, 90, 10)
    assert words(DRAWN["stacked"])[1:] == ["tokens", "9 (90.0%)", "padding", "1 (10.0%)"]


def test_a_part_keeps_its_colour_when_another_is_empty():
    assert charts.GOOD in charts.stacked({"a": 0, "b": 1}, "x")
    assert charts.MAIN not in charts.stacked({"a": 0, "b": 1}, "x")


@pytest.mark.parametrize(
    "svg",
    [
        charts.line([], "Title"),
        charts.line([(0, 1)], "Title"),
        charts.line([(0, math.nan), (1, math.inf), (2, 3)], "Title"),
        charts.line([(5, 1), (5, 2)], "Title"),
        charts.histogram([], ["0"], "Title"),
        charts.histogram([0, 0], ["0", "1", "2"], "Title"),
        charts.histogram([math.nan], ["0", "1"], "Title"),
        charts.bars({}, "Title"),
        charts.bars({"a": math.nan}, "Title"),
        charts.stacked({}, "Title"),
        charts.stacked({"a": 0.0, "b": math.inf}, "Title"),
    ],
)
def test_where_there_is_nothing_to_draw_a_sentence_says_so(svg):
    assert not rects(svg)
    assert "polyline" not in svg
    assert words(svg)[0] == "Title"
    assert len(words(svg)) == 2
    assert "nan" not in svg.lower()


def test_zeros_and_extremes_are_drawn():
    for svg in (
        charts.line([(0, 0), (1, 0)], "x"),
        charts.line([(0, 1e-12), (1e9, 1e15)], "x"),
        charts.bars({"none": 0}, "x"),
        charts.histogram([10**12, 1], ["0", "1", "2"], "x"),
    ):
        assert parsed(svg) is not None
        assert "nan" not in svg
        assert "inf" not in svg.replace("info", "")


@pytest.mark.parametrize("top", [1e-9, 0.003, 0.7, 1, 3, 4, 4.1, 10, 99, 101, 12345, 7e11])
def test_levels_are_few_round_and_reach_the_top(top):
    levels = charts.round_levels(top)
    assert levels[0] == 0
    assert 3 <= len(levels) <= 5
    assert levels[-2] < top <= levels[-1] * 1.0000001
    leading = round(levels[1] / 10 ** math.floor(math.log10(levels[1]) + 1e-9))
    assert leading in (1, 2, 5)


@pytest.mark.parametrize("top", [0, -1, math.nan, math.inf])
def test_an_axis_without_a_top_goes_to_one(top):
    assert charts.round_levels(top)[-1] == 1


def test_numbers_of_an_axis_are_short():
    numbers = [0, 0.25, 12, 999.9, 1000, 1500, 12_345, 999_999, 2_340_000, 7e11, math.nan]
    assert [brief(number) for number in numbers] == "0 0.25 12 1k 1k 1.5k 12.3k 1M 2.34M 700G ?".split()


def test_durations_are_seconds_and_then_a_clock():
    assert [
        duration(each) for each in (0, 0.25, 12.34, 119, 120, 3725)
    ] == "0.0 s|0.25 s|12.3 s|119.0 s|2:00|1:02:05".split("|")
