"""A Comparison as HTML: a card for notebooks and a page of its own, with pictures. Whatever comes in is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from hfbatch import charts, html
from hfbatch.words import commit, count

if TYPE_CHECKING:
    from hfbatch.comparison import Agreement, Change, Comparison, Subject

_PAIRS = 12  # of a confusion table; the page shows more
_PAGE_PAIRS = 100
_NUMBERS = ("rows", "change")
_WIDE = {"row": "min-width:9em;overflow-wrap:anywhere", "text": "min-width:14em"}


def comparison_card(found: Comparison) -> str:
    """For a notebook; the rows that differ most stand below, with room for their texts."""
    tables = _tables(found, _PAIRS)
    last = tables.pop() if found.changes else Markup("")
    card = html.card("Comparison", headline(found), facts(found), [*pictures(found), *tables])
    below = Markup('<div style="max-width:1000px;margin:10px 16px;font:13px/1.5 system-ui,sans-serif">{}</div>')
    return card + str(below.format(last)) if last else card  # a Markup would escape the card


def comparison_page(found: Comparison) -> str:
    """One file that is readable offline."""
    told = Markup('<dl style="margin:16px 0 24px">{}</dl>').format(
        Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in facts(found))
    )
    drawn = _blocks("charts", "chart", pictures(found))
    tables = Markup("").join(
        Markup('<div class="box" style="margin-top:12px">{}</div>').format(each) for each in _tables(found, _PAGE_PAIRS)
    )
    return html.page("Comparison", Markup("<p>{}</p>").format(headline(found)) + told + drawn + tables)


def headline(found: Comparison) -> str:
    """The one figure that a person asks for."""
    parts = [f"{each.column} equal in {each.equal_share:.1%}" for each in agreements(found)]
    parts += [f"{each.column} cosine {each.mean_cosine:.4f}" for each in found.vectors]
    parts += [f"{each.column} {each.mean_difference:.4f} apart" for each in found.scores]
    return f"{count(found.rows, 'row')} in both" + "".join(f", {part}" for part in parts[:3])


def agreements(found: Comparison) -> Iterator[Agreement]:
    """The columns whose values are the same or are not."""
    yield from found.labels
    yield from found.values


def facts(found: Comparison) -> list[tuple[str, str]]:
    """Name and value, for text and HTML alike."""
    told = [("a", _subject(found.a)), ("b", _subject(found.b))]
    told.append(("rows", f"{found.rows:,} in both, {found.only_a:,} only in a, {found.only_b:,} only in b"))
    if found.changed_files:
        named = ", ".join(found.changed_files[:3]) + (", ..." if len(found.changed_files) > 3 else "")
        told.append(("changed", f"{count(len(found.changed_files), 'file')} with another content: {named}"))
    told.append(("failed", f"{found.failed_a:,} in a, {found.failed_b:,} in b"))
    for values in agreements(found):
        told.append(
            (values.column, f"equal in {values.equal:,} of {count(values.rows, 'row')} ({values.equal_share:.1%})")
        )
    for scores in found.scores:
        change = f"{scores.mean_change:+.4g} in the mean, {scores.mean_difference:.4g} without sign"
        told.append((scores.column, f"{change}, {scores.largest_difference:.4g} at most"))
    for vectors in found.vectors:
        told.append(
            (vectors.column, f"cosine {vectors.mean_cosine:.6f} in the mean, {vectors.lowest_cosine:.6f} at least")
        )
    for each in [*found.labels, *found.scores, *found.vectors, *found.values]:
        if each.null_a or each.null_b:
            told.append((f"{each.column} null", f"{each.null_a:,} only in a, {each.null_b:,} only in b"))
    told += [(f"{name} left out", why) for name, why in found.skipped.items()]
    return told


def _subject(subject: Subject) -> str:
    state = "" if subject.complete else ", not complete"
    return (
        f"{subject.output}: {subject.model_id} @ {commit(subject.model_revision)}, {count(subject.rows, 'row')}{state}"
    )


def pictures(found: Comparison) -> list[Markup]:
    """How labels shift, and how far scores and vectors lie apart."""
    drawn = list[Markup]()
    for labels in found.labels:
        names = dict.fromkeys([*labels.a, *labels.b])
        for side, counts in (("a", labels.a), ("b", labels.b)):
            shares = {name: float(counts.get(name, 0)) for name in names}
            drawn.append(charts.bars(shares, f"{labels.column} in {side}", about=count(labels.rows, "row")))
    for scores in found.scores:
        about = f"without sign, {count(scores.rows, 'row')}"
        drawn.append(charts.bars(_filled(scores.differences), f"Change of {scores.column}", about=about))
    for vectors in found.vectors:
        about = f"of {vectors.column}, {count(vectors.rows, 'row')}"
        drawn.append(charts.bars(_filled(vectors.cosines), "Cosine", about=about))
    return drawn


def _filled(bins: Mapping[str, int]) -> dict[str, float]:
    return {name: float(rows) for name, rows in bins.items() if rows}


def _tables(found: Comparison, pairs: int) -> list[Markup]:
    tables = [
        _table(f"{each.column}: a, then b", ("a", "b", "rows"), (_pair(pair) for pair in each.confusion[:pairs]))
        for each in found.labels
    ]
    if found.errors:
        rows = (_pair((one or "none", other or "none", many)) for one, other, many in found.errors[:pairs])
        tables.append(_table("Errors", ("a", "b", "rows"), rows))
    if found.changes:
        names = ("row", "column", "a", "b", "change", "text")
        tables.append(_table("Rows that differ most", names, map(change_cells, found.changes)))
    return tables


def _pair(pair: tuple[str, str, int]) -> tuple[str, str, str]:
    return pair[0], pair[1], f"{pair[2]:,}"


def change_cells(change: Change) -> tuple[str, ...]:
    """place, column, a, b, how far apart, text."""
    sides = ((change.label_a, change.a), (change.label_b, change.b))
    told = [
        " ".join(([label] if label else []) + ([f"{value:.4g}"] if value is not None else [])) for label, value in sides
    ]
    sign = f"{change.difference:+.4g}" if change.a is not None else f"{change.difference:.4g}"
    return change.place, change.column, *told, sign, change.text or ""


def _table(title: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Cells stay on one line, but places and texts; a table that is too wide moves sideways by itself."""
    head = _cells("th", names, names)
    body = Markup("").join(Markup("<tr>{}</tr>").format(_cells("td", names, row)) for row in rows)
    return Markup(
        '<b>{}</b><div style="overflow-x:auto"><table style="width:100%;font:inherit"><tr>{}</tr>{}</table></div>'
    ).format(title, head, body)


def _cells(tag: str, names: Sequence[str], row: Sequence[str]) -> Markup:
    return Markup("").join(
        Markup('<{} style="text-align:{};{}">{}</{}>').format(
            tag, "right" if name in _NUMBERS else "left", _WIDE.get(name, "white-space:nowrap"), cell, tag
        )
        for name, cell in zip(names, row, strict=True)
    )


def _blocks(outer: str, inner: str, parts: Sequence[Markup]) -> Markup:
    made = Markup("").join(Markup('<div class="{}">{}</div>').format(inner, part) for part in parts)
    return Markup('<div class="{}">{}</div>').format(outer, made)
