"""The commands on outputs: what stands there, what failed, is it sound; try again, repair, clean up."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from hfbatch.cli import ending, show, states
from hfbatch.cli.jobs import watched_run
from hfbatch.cli.root import Json, On, Output, Set, Trust, app, lines, read_machine
from hfbatch.cli.text import out_json
from hfbatch.errors import HfbatchError

Code = Annotated[str | None, typer.Option(metavar="CODE", help="only errors of this code, such as too_long")]


@app.command(epilog=lines("Examples", "hfbatch status out/quickstart", "hfbatch status s3://bucket/labels --json"))
def status(
    output: Output,
    address: Annotated[
        str | None, typer.Option("--address", metavar="URL", help="a cluster; OUTPUT is then a job's ID on it")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="the newest N runs (default: 10; with --json all)")
    ] = None,
    json_: Json = False,
) -> None:
    """Show how far an output is, who is at work, and all its runs."""
    if address is not None:
        from hfbatch.cli import cluster

        cluster.status(output, address, json_)
        return
    from hfbatch.status import read_status

    found = read_status(output, runs or (None if json_ else 10))
    if json_:
        out_json(found)
    else:
        states.status(found)


@app.command(
    epilog=lines("Examples", "hfbatch report out/quickstart", "hfbatch report out/quickstart --html report.html")
)
def report(
    output: Output,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write it as one page, with pictures, instead")
    ] = None,
    json_: Json = False,
) -> None:
    """Show what the last run did."""
    from hfbatch.html import report_html
    from hfbatch.pages import last_report

    found, about = last_report(output)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(report_html(found, about), encoding="utf-8")
    if json_:
        out_json(found.model_dump())
    elif html is None:
        show.report(found)
    else:
        states.line(f"{html}: written")


@app.command(epilog=lines("Examples", "hfbatch errors out/quickstart", "hfbatch errors out/labels --code too_long"))
def errors(
    output: Output,
    code: Code = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="show at most N rows")] = 100,
    json_: Json = False,
) -> None:
    """List the rows that failed: file, row (from 0), code, message."""
    from hfbatch.failed import count_failed, failed_rows

    summary = {name: rows for name, rows in count_failed(output).items() if code in (None, name)}
    rows = list(islice(failed_rows(output, code), limit))
    if json_:
        out_json({"summary": summary, "rows": [vars(row) for row in rows]})
        return
    states.errors(summary, rows)
    left = sum(summary.values()) - len(rows)
    if left > 0:
        ending.say(f"{left:,} more; --limit shows them")


@app.command(
    epilog=lines(
        "Examples", "hfbatch retry out/quickstart", "hfbatch retry out/labels --code too_long --set max_batch_rows=1"
    )
)
def retry(
    output: Output,
    on: On = None,
    set_: Set = None,
    trust_remote_code: Trust = False,
    code: Annotated[
        str | None, typer.Option(metavar="CODE", help="only in shards that have an error of this code")
    ] = None,
    json_: Json = False,
) -> None:
    """Infer the failed rows again; what else is committed stays."""
    from hfbatch.again import plan_retry
    from hfbatch.failed import count_failed

    overrides, machine = read_machine(on, set_)
    before = sum(count_failed(output).values())
    plan = plan_retry(output, machine, overrides, trust_remote_code=trust_remote_code, code=code)
    report = None if plan is None else watched_run(plan)
    if json_:
        ended = {"outcome": "nothing_to_do", "rows_failed": before} if report is None else report.model_dump()
        out_json({**ended, "failed_before": before})
    elif report is None:
        states.line(f"{output}: no committed row failed{f' with {code}' if code else ''}; nothing to retry")
    else:
        show.report(report)
        states.line(f"retried  {before:,} failed before, {report.rows_failed:,} now")


@app.command(
    epilog=lines("Examples", "hfbatch verify out/quickstart", "hfbatch verify s3://bucket/labels --rows 200 --json")
)
def verify(
    output: Output,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="infer N committed rows again, and compare")] = 0,
    seed: Annotated[
        int | None, typer.Option(metavar="S", show_default=False, help="picks the rows (default: another each time)")
    ] = None,
    on: On = None,
    set_: Set = None,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Check that an output holds what was committed, and only that."""
    from hfbatch.examine import examine
    from hfbatch.recheck import recheck_output

    overrides, machine = read_machine(on, set_)
    found, sample = examine(output), None
    if rows and not found.flaws:
        sample = recheck_output(output, rows, seed, machine, overrides, trust_remote_code)
        found = sample.added_to(found)
    problem = None
    try:
        found.check()
    except HfbatchError as error:
        problem = error
    if json_:
        out_json(states.examined_as_data(found, sample) | (ending.as_data(problem) if problem else {}))
    else:
        states.examined(found, sample)
    if problem:
        ending.tell(problem)
        raise typer.Exit(ending.exit_code(problem))


@app.command(epilog=lines("Examples", "hfbatch repair out/quickstart", "hfbatch repair out/labels --on big.yaml"))
def repair(
    output: Output, on: On = None, set_: Set = None, trust_remote_code: Trust = False, json_: Json = False
) -> None:
    """Make again what is damaged, and only that."""
    from hfbatch.again import plan_repair

    overrides, machine = read_machine(on, set_)
    plan, found = plan_repair(output, machine, overrides, trust_remote_code=trust_remote_code)
    for flaw in found.flaws:
        ending.say(f"{flaw.place}: {flaw.what}")
    report = None if plan is None else watched_run(plan)
    if json_:
        ended = {"outcome": "nothing_to_do"} if report is None else report.model_dump()
        out_json({**ended, "flaws": [vars(flaw) for flaw in found.flaws]})
    elif report is None:
        states.line(f"{output}: nothing is damaged; nothing to repair")
    else:
        show.report(report)


@app.command(epilog=lines("Examples", "hfbatch gc out/quickstart --dry-run", "hfbatch gc out/quickstart"))
def gc(
    output: Output,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would go")] = False,
    json_: Json = False,
) -> None:
    """Remove what nobody needs any more; safe beside a live run."""
    from hfbatch.garbage import collect, find_garbage

    found = find_garbage(output) if dry_run else collect(output)
    if json_:
        out_json({"removed": not dry_run, "objects": [vars(each) for each in found]})
    else:
        states.garbage(found, dry_run)
