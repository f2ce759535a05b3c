"""The commands that look: a few rows through the model before a run, two outputs side by side after it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfbatch.cli import head
from hfbatch.cli.root import JobFile, Json, On, Set, Trust, Var, app, lines, read_files
from hfbatch.cli.text import bold, facts, one_line, out, out_json, table
from hfbatch.errors import Problem, SpecError

if TYPE_CHECKING:
    from hfbatch.comparison import Comparison, Labels

_PAIRS = 10  # of a confusion table


@app.command(epilog=lines("Examples", "hfbatch preview jobs/quickstart.yaml", "hfbatch preview job.yaml -n 20 --json"))
def preview(
    job: JobFile,
    rows: Annotated[int, typer.Option("-n", "--rows", metavar="N", min=1, help="how many of the first rows")] = 5,
    on: On = None,
    var: Var = None,
    set_: Set = None,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Show the first rows with their real results; write nothing."""
    from hfbatch.planner import make_plan
    from hfbatch.previewing import preview_plan

    spec, machine = read_files(job, on, var, set_)
    with redirect_stdout(sys.stderr):  # a library's chatter is not our data
        plan = make_plan(spec, machine, trust_remote_code=trust_remote_code)
        found = preview_plan(plan, rows)
    if json_:
        out_json({"job": plan.job.name, "rows": head.as_data(found)})
        return
    out(bold(f"preview of {plan.job.name}") + ", nothing is written")
    head.show(found, plan.job.steps)


@app.command(
    epilog=lines(
        "Examples",
        "hfbatch compare out/reviews-v1 out/reviews-v2",
        "hfbatch compare out/monday out/tuesday --on id --html changes.html",
    )
)
def compare(
    out_a: Annotated[str, typer.Argument(metavar="OUT_A", help="an output folder, any fsspec URL", show_default=False)],
    out_b: Annotated[str, typer.Argument(metavar="OUT_B", help="another one", show_default=False)],
    on: Annotated[
        str | None, typer.Option("--on", metavar="COLUMN", help="tells rows apart (default: input file and row)")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="show the N rows that differ most")] = 10,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a page with pictures too")] = None,
    json_: Json = False,
) -> None:
    """Show where two outputs agree, label by label and score by score."""
    from hfbatch.comparing import compare_outputs

    found = compare_outputs(out_a, out_b, on=on, top=top)
    if html is not None:
        _write_page(html, found)
    if json_:
        out_json(found.model_dump())
    else:
        show(found)
        if html is not None:
            out(f"\n{html}: written")


def show(found: Comparison) -> None:
    """A comparison as text."""
    from hfbatch.comparison_html import change_cells
    from hfbatch.comparison_html import facts as told

    out(bold("comparison") + "\n" + facts([(name, one_line(value)) for name, value in told(found)]))
    for labels in found.labels:
        out("\n" + bold(f"{labels.column}: share") + "\n" + _shift(labels))
        pairs = [(one_line(a), one_line(b), f"{rows:,}") for a, b, rows in labels.confusion[:_PAIRS]]
        out("\n" + bold(f"{labels.column}: a, then b") + "\n" + table(("a", "b", "rows"), pairs, right=("rows",)))
    bins = {f"{each.column}: change, without sign": each.differences for each in found.scores}
    bins |= {f"{each.column}: cosine": each.cosines for each in found.vectors}
    for title, counts in bins.items():
        counted = [(words, f"{rows:,}") for words, rows in counts.items() if rows]
        out("\n" + bold(title) + "\n" + table(("from", "rows"), counted, right=("rows",)))
    if found.errors:
        codes = [(one_line(a or "none"), one_line(b or "none"), f"{rows:,}") for a, b, rows in found.errors]
        out("\n" + bold("errors") + "\n" + table(("a", "b", "rows"), codes, right=("rows",)))
    if found.changes:
        cells = [tuple(one_line(cell) for cell in change_cells(change)) for change in found.changes]
        names = ("row", "column", "a", "b", "change", "text")
        out("\n" + bold("rows that differ most") + "\n" + table(names, cells, right=("change",)))


def _shift(labels: Labels) -> str:
    rows = []
    for name in dict.fromkeys([*labels.a, *labels.b]):
        a, b = (each.get(name, 0) / max(1, labels.rows) for each in (labels.a, labels.b))
        rows.append((one_line(name), f"{a:.1%}", f"{b:.1%}", f"{b - a:+.1%}"))
    return table(("label", "a", "b", "shift"), rows, right=("a", "b", "shift"))


def _write_page(file: Path, found: Comparison) -> None:
    from hfbatch.comparison_html import comparison_page

    try:
        file.write_text(comparison_page(found), encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise SpecError([Problem("--html", "", f"{file}: {error.strerror}", "name a file in a folder")]) from None
