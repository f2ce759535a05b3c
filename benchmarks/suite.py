"""All benchmarks one after another, each in a process of its own; tables and JSON go to out/bench.

    python -m benchmarks.suite                      # two cores: about two and a half hours
    python -m benchmarks.suite --device cuda        # one GPU, bfloat16
    python -m benchmarks.suite --quick              # the same with few rows: does everything run?

out/bench/<device>/report.md is what goes into RESULTS.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.turns import tell

OUT = Path("out/bench")
CPU = {
    "embedding-licences": "embedding --texts licences --rows 6000",
    "embedding-news": "embedding --texts news --rows 600 --repeats 1",
    "embedding-tweets": "embedding --texts tweets --rows 10000 --repeats 1",
    "classification": "classification",
    "token-classification": "token-classification",
    "zero-shot": "zero-shot",
    "question-answering": "question-answering",
    "generation-50m": "generation --repeats 2",
    "generation-smollm2": "generation --model smollm2 --repeats 1",
    "decision": "decision",
    "decision-text-first": "decision-text-first --repeats 1",
    "image-classification": "image-classification",
}
GPU = {  # a minute of a GPU that embeds some thousands of texts a second
    "embedding-licences": "embedding --texts licences --rows 150000",
    "embedding-passages-base": "embedding --texts passages --model encoder-base --rows 100000",
    "embedding-tweets": "embedding --texts tweets --rows 300000 --repeats 1",
    "classification": "classification --rows 150000",
    "token-classification": "token-classification --rows 60000",
    "zero-shot": "zero-shot --rows 40000",
    "question-answering": "question-answering --rows 10000",
    "generation-50m": "generation --rows 2000",
    "generation-smollm2": "generation --model smollm2 --rows 2000 --repeats 1",
    "image-classification": "image-classification --rows 10000",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", help="names, separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="64 rows, one repeat")
    parser.add_argument("--transformers-4", metavar="FOLDER", help="where transformers 4.57 lies, for its QA pipeline")
    arguments = parser.parse_args()
    runs = GPU if arguments.device == "cuda" else CPU
    names = arguments.only.split(",") if arguments.only else list(runs)
    out = OUT / arguments.device
    out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if not run(name, command(name, runs[name], arguments, out), out)]
    whole = "\n".join((out / f"{name}.md").read_text() for name in names if name not in failed)
    (out / "report.md").write_text(whole)
    print(whole)
    if failed:
        raise SystemExit(f"these ended early: {', '.join(failed)}")


def command(name: str, written: str, arguments: argparse.Namespace, out: Path) -> list[str]:
    """The command line of one benchmark."""
    words = ["-m", "benchmarks.peers", *written.split(), "--json", str(out / f"{name}.json")]
    if arguments.device == "cuda":
        words += ["--device", "cuda", "--dtype", "bfloat16", "--shard-rows", "16384"]
    if arguments.quick:
        words += ["--rows", "64", "--repeats", "1", "--slice", "0.5"]
    if arguments.transformers_4:
        words += ["--transformers-4", arguments.transformers_4]
    return [sys.executable, *words]


def run(name: str, words: list[str], out: Path) -> bool:
    """Run it, keep what it prints; whether it came to its end."""
    tell(f"{name}: {' '.join(words[1:])}")
    with (out / f"{name}.md").open("w") as file:
        return subprocess.run(words, stdout=file, check=False).returncode == 0


if __name__ == "__main__":
    main()
