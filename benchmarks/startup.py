"""Where the seconds of a small job go: from the process's start to the first forward, the commit and the end.

    python benchmarks/startup.py                 three runs of 64 rows of the quickstart, a rerun after each
    python benchmarks/startup.py --runs 5 --job jobs/quickstart.yaml

Run it on a quiet machine: on a busy one every import takes as long as its neighbours let it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def timed(job: str, output: Path) -> tuple[float, float]:
    """(clock at the start of `hfbatch run`, seconds it took)."""
    started = time.time()
    command = [sys.executable, "-m", "hfbatch.cli", "run", job, "--json"]
    settings = [f"--set=output.path={output}", "--set=input.limit=64"]
    subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    return started, time.time() - started


def marks(output: Path, started: float, took: float) -> dict[str, float]:
    """Seconds since the start of the process, from what the run wrote down."""
    run = next((output / "_hfbatch" / "runs").iterdir())
    about = json.loads((run / "started.json").read_text())
    report = json.loads((run / "report.json").read_text())
    receipts = [json.loads(path.read_text()) for path in (output / "_hfbatch" / "commits").rglob("*.json")]
    records = [path.stat().st_mtime for path in (output / "_hfbatch" / "commits").rglob("*.json")]
    return {
        "planned": about["started"] - started,
        "first forward": min(receipt["stats"]["first_s"] for receipt in receipts) - started,
        "first commit": min(records) - started,
        "end": took,
        "of it model load": report["seconds"]["model_load"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="jobs/quickstart.yaml")
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    rows, folder = [], Path(tempfile.mkdtemp())
    try:
        for number in range(chosen.runs):
            output = folder / str(number)
            first = marks(output, *timed(chosen.job, output))
            rows.append({**first, "rerun with nothing to do": timed(chosen.job, output)[1]})
    finally:
        shutil.rmtree(folder)
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name:26} {median(values):6.1f} s   ({', '.join(f'{value:.1f}' for value in values)})")


if __name__ == "__main__":
    main()
