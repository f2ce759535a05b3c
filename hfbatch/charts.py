"""Numbers in, one inline SVG as text out: line, histogram, bars, stacked bar. No script, no library to draw with.

Widths are shares of the place a chart stands in and type has its size in pixels, so it is legible in a phone's width
and in a page's. Words and axes take the colour of the text around them, marks the variables --hf-main, --hf-good and
--hf-bad where a page sets them: both show on light and on dark. Text that comes in is escaped. Values that are not
finite are left out; without any there is a sentence in the picture's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup
from rich.cells import cell_len, set_cell_size

from hfbatch.words import brief, clock

MAIN, GOOD, BAD = "var(--hf-main, #4a86dd)", "var(--hf-good, #35a077)", "var(--hf-bad, #d9605a)"
SOFT, REST = "var(--hf-soft, #a9b8cc)", "var(--hf-rest, #8c7fd6)"
COLOURS = (MAIN, GOOD, REST, BAD, SOFT)
_HEAD, _PLOT, _FOOT = 48, 132, 24  # pixels: title and subtitle, the plot, ticks below it
_LEFT = 10.0  # percent: what the labels of the vertical axis have
_CELLS = 30  # of a name
_TICKS = 11  # below a histogram at most
_TYPE = {"title": (14, 600), "word": (12, 400), "small": (11, 400)}  # size in pixels, weight
_STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)


def line(points: Sequence[tuple[float, float]], title: str, *, about: str = "", unit: str = "") -> Markup:
    """A value over time: `points` are (seconds, value), in order of time."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return _nothing(title, "too short to draw")
    first, span = points[0][0], points[-1][0] - points[0][0]
    levels = round_levels(max(y for _, y in points))
    way = " ".join(f"{(x - first) / span * 1000:.1f},{100 - max(y, 0) / levels[-1] * 100:.2f}" for x, y in points)
    drawn = Markup(
        '<svg x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 1000 100" preserveAspectRatio="none" '
        'overflow="visible"><polygon points="0,100 {} 1000,100" fill="{}" fill-opacity=".16"/>'
        '<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-linejoin="round" '
        'vector-effect="non-scaling-stroke"/></svg>'
    ).format(_LEFT, _HEAD, 100 - _LEFT, _PLOT, way, MAIN, way, MAIN)
    step = next((each for each in _STEPS_S if span / each <= 6), 86400 * math.ceil(span / 86400 / 6))
    ticks = [(at / span, _moment(at, span)) for at in _multiples(step, span)]
    most = f"up to {brief(max(y for _, y in points))} {unit}, over {_moment(span, span)}"
    return _svg(title, most, _HEAD + _PLOT + _FOOT, [_head(title, about), _levels(levels), drawn, _feet(ticks)])


def histogram(counts: Sequence[float], edges: Sequence[str], title: str, *, about: str = "") -> Markup:
    """How many lie between each two of `edges`, which are words: one more than there are counts."""
    counts = [value if math.isfinite(value) else 0 for value in counts]
    total = sum(counts)
    if total <= 0:
        return _nothing(title, "there are none")
    levels, width = round_levels(max(counts)), (100 - _LEFT) / len(counts)
    columns = []
    for i, value in enumerate(counts):
        height = max(value / levels[-1] * _PLOT, 1.5 if value else 0)
        place = (f"{_LEFT + (i + 0.04) * width:.2f}%", f"{_HEAD + _PLOT - height:.1f}", f"{0.92 * width:.2f}%")
        columns.append(_rect(*place, f"{height:.1f}", MAIN, f"{edges[i]} to {edges[i + 1]}: {_part(value, total)}"))
    least = math.ceil(len(edges) / _TICKS)
    every = next((each for each in range(least, 2 * least + 1) if len(counts) % each == 0), least)  # the last is shown
    ticks = [(i / len(counts), edge) for i, edge in enumerate(edges) if i % every == 0]
    top = max(range(len(counts)), key=counts.__getitem__)
    most = f"{brief(total)} in all, most of them from {edges[top]} to {edges[top + 1]}"
    return _svg(title, most, _HEAD + _PLOT + _FOOT, [_head(title, about), _levels(levels), *columns, _feet(ticks)])


def bars(
    values: Mapping[str, float],
    title: str,
    *,
    about: str = "",
    most: int = 12,
    show: Callable[[float, float], str] | None = None,
    colour: str = MAIN,
) -> Markup:
    """One bar a name, in the order they come; past `most` the rest is one bar. `show`: value and sum in words."""
    kept = {name: value for name, value in values.items() if math.isfinite(value)}
    if not kept:
        return _nothing(title, "there are none")
    if len(kept) > most:
        names = list(kept)
        rest = sum(kept[name] for name in names[most - 1 :])
        kept = {name: kept[name] for name in names[: most - 1]}
        kept[f"{len(names) - most + 1:,} others"] = rest
    total, longest, show = sum(kept.values()), max(kept.values()), show or _part
    parts = [_head(title, about)]
    for i, (name, value) in enumerate(kept.items()):
        top = _HEAD - 6 + i * 34
        said = show(value, total)
        share = max(value, 0) / longest * 100 if longest > 0 else 0
        parts += [
            _text("0", top + 12, _cut(name), tip=name),
            _text("100%", top + 12, said, anchor="end", opacity=0.75),
            _rect("0", f"{top + 18}", "100%", "8", "currentColor", opacity=0.1),
            _rect("0", f"{top + 18}", f"{share:.2f}%", "8", colour, f"{name}: {said}"),
        ]
    told = ", ".join(f"{name} {show(value, total)}" for name, value in kept.items())
    return _svg(title, told, _HEAD + 34 * len(kept) - 8, parts)


def stacked(
    parts: Mapping[str, float],
    title: str,
    *,
    about: str = "",
    show: Callable[[float, float], str] | None = None,
    colours: Sequence[str] = COLOURS,
) -> Markup:
    """One bar, cut in parts, and what each is. `show`: value and sum in words; `colours`: of the parts, in turn."""
    kept = {name: value for name, value in parts.items() if math.isfinite(value) and value > 0}
    total, show = sum(kept.values()), show or _part
    if not kept:
        return _nothing(title, "there is nothing")
    drawn, left = [_head(title, about)], 0.0
    fills = dict(zip(parts, (colours[i % len(colours)] for i in range(len(parts))), strict=True))
    for i, (name, value) in enumerate(kept.items()):
        width, said, top = value / total * 100, show(value, total), _HEAD + 30 + i * 22
        drawn += [
            _rect(f"{left:.2f}%", f"{_HEAD - 4}", f"{width:.2f}%", "18", fills[name], f"{name}: {said}"),
            _rect("0", f"{top - 1}", "11", "11", fills[name]),
            _text("18", top + 9, _cut(name), tip=name),
            _text("100%", top + 9, said, anchor="end", opacity=0.75),
        ]
        left += width
    told = ", ".join(f"{name} {show(value, total)}" for name, value in kept.items())
    return _svg(title, told, _HEAD + 30 + 22 * len(kept), drawn)


def round_levels(top: float) -> list[float]:
    """From 0 in three to five equal steps of 1, 2 or 5 to over `top`."""
    top = top if top > 0 and math.isfinite(top) else 1.0
    size = 10.0 ** math.floor(math.log10(top / 4))
    step = next(step for step in (size, 2 * size, 5 * size, 10 * size) if top / step <= 4.0001)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def _multiples(step: float, upto: float) -> list[float]:
    return [step * i for i in range(int(upto / step + 1e-9) + 1)]


def _moment(seconds: float, span: float) -> str:
    return f"{seconds:.3g} s" if span < 120 else clock(seconds)


def _part(value: float, total: float) -> str:
    """1,234 (12.3%)."""
    number = f"{value:,.0f}" if value == round(value) else brief(value)
    return f"{number} ({value / total:.1%})" if total > 0 else number


def _svg(title: str, told: str, height: float, parts: Iterable[Markup]) -> Markup:
    """The picture, and `told`: what it shows, for who cannot see it."""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="hf-chart" role="img" width="100%" height="{}" '
        'fill="currentColor" font-size="12" style="display:block"><title>{}: {}</title>{}</svg>'
    ).format(height, _plain(title), _plain(told), Markup("").join(parts))


def _nothing(title: str, why: str) -> Markup:
    return _svg(title, why, _HEAD, [_head(title, why)])


def _head(title: str, about: str) -> Markup:
    words = _text("0", 14, title, kind="title")
    return words + _text("0", 31, about, opacity=0.7) if about else words


def _levels(levels: Sequence[float]) -> Markup:
    """Horizontal lines with their values; the last level is the top of the plot."""
    drawn = Markup("")
    for level in levels:
        y = _HEAD + _PLOT * (1 - level / levels[-1])
        drawn += Markup(
            '<line x1="{}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="{opacity}"/>'
        ).format(_LEFT, y=y, opacity=0.14 if level else 0.5)
        drawn += _text(f"{_LEFT - 1.5}%", y + 4, brief(level), anchor="end", opacity=0.7, kind="small")
    return drawn


def _feet(ticks: Iterable[tuple[float, str]]) -> Markup:
    """Words below the plot: (share of its width, text)."""
    return Markup("").join(
        _text(
            f"{_LEFT + (100 - _LEFT) * share:.2f}%",
            _HEAD + _PLOT + 16,
            word,
            anchor="end" if share > 0.97 else "middle",
            opacity=0.7,
            kind="small",
        )
        for share, word in ticks
    )


def _rect(x: str, y: str, width: str, height: str, fill: str, tip: str = "", *, opacity: float = 1) -> Markup:
    inner = Markup("<title>{}</title>").format(_plain(tip)) if tip else ""
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}" fill-opacity="{}">{}</rect>').format(
        x, y, width, height, fill, opacity, inner
    )


def _text(
    x: str, y: float, text: str, *, anchor: str = "start", opacity: float = 1, kind: str = "word", tip: str = ""
) -> Markup:
    size, weight = _TYPE[kind]
    inner = Markup("<title>{}</title>").format(_plain(tip)) if tip and tip != text else ""
    return Markup(
        '<text x="{}" y="{:.0f}" text-anchor="{}" fill-opacity="{}" font-size="{}" font-weight="{}">{}{}</text>'
    ).format(x, y, anchor, opacity, size, weight, _plain(text), inner)


def _plain(text: str) -> str:
    """Without signs that show nothing, or turn the direction of what follows."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _cut(name: str) -> str:
    """What leaves room for a value beside it in a phone's width; signs of Chinese, say, take two cells."""
    return name if cell_len(name) <= _CELLS else set_cell_size(name, _CELLS - 1).rstrip() + "…"
