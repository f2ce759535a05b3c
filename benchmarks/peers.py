"""One benchmark: every way to the same values, side by side, with correctness beside speed.

    python -m benchmarks.peers embedding --texts licences --rows 6000 --repeats 3 --json out.json
    python -m benchmarks.peers classification --routes 'pipeline 1; hfbatch' --rows 500 --repeats 1

Prints the machine and Markdown tables; progress goes to stderr. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.benches import BENCHES, BFLOAT16, Bench, on_gpu
from benchmarks.corpora import CORPORA, write_corpus
from benchmarks.costs import Shape
from benchmarks.machine import describe, has_bfloat16
from benchmarks.models import MODELS, model_folder
from benchmarks.setting import Setting
from benchmarks.tables import Result, machine_lines
from benchmarks.turns import Turns, tell

DATA = Path("data/bench")


def main() -> None:
    arguments = _parser().parse_args()
    machine = describe(arguments.threads)
    result = measure(arguments)
    print(f"{machine_lines(machine)}\n{result.markdown()}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, **result.json()}, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> Result:
    """Make model and rows where they are missing, let the routes take turns, and count."""
    bench = _bench(arguments)
    with tempfile.TemporaryDirectory(prefix="hfbatch-bench-") as scratch:
        setting = Setting(
            bench=arguments.bench,
            task=bench.task,
            params=bench.params,
            model=str(model_folder(bench.model)),
            data=str(write_corpus(bench.corpus, bench.rows, DATA, arguments.seed)),
            scratch=scratch,
            threads=arguments.threads,
            device=arguments.device,
            dtype=arguments.dtype,
            shard_rows=arguments.shard_rows,
            transformers_4=arguments.transformers_4,
        )
        turns = Turns(setting, bench.routes, arguments.slice)
        outcome = turns.run(arguments.repeats)
    return Result(bench, setting, outcome, turns.lengths, _flops_a_row(setting, turns))


def _bench(arguments: argparse.Namespace) -> Bench:
    """As declared, with what was asked for."""
    bench = BENCHES[arguments.bench]
    if arguments.device != "cpu":
        bench = on_gpu(bench)
    elif not has_bfloat16() and (BFLOAT16 in bench.routes or arguments.dtype == "bfloat16"):
        if arguments.dtype == "bfloat16":
            raise SystemExit("no avx512_bf16/amx here: bfloat16 would be emulated; leave --dtype out")
        tell("no avx512_bf16/amx here: hfbatch in bfloat16 is skipped")
        bench = replace(bench, routes=tuple(route for route in bench.routes if route is not BFLOAT16))
    if arguments.routes:
        asked = [name.strip() for name in arguments.routes.split(";")]
        known = {route.name for route in bench.routes}
        if unknown := [name for name in asked if name not in known]:
            raise SystemExit(f"no route {unknown[0]!r} here; there are: {'; '.join(sorted(known))}")
        bench = replace(bench, routes=tuple(route for route in bench.routes if route.name in asked))
    changed = {"model": arguments.model, "corpus": arguments.texts, "rows": arguments.rows}
    return replace(bench, **{name: value for name, value in changed.items() if value is not None})


def _flops_a_row(setting: Setting, turns: Turns) -> float | None:
    """Mean over the corpus, of one pass; None where rows are no plain sequences of an encoder."""
    if setting.task not in ("feature-extraction", "text-classification", "token-classification"):
        return None
    config = json.loads((Path(setting.model) / "config.json").read_text())
    return Shape.of(config).flops(turns.lengths) / len(turns.lengths)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--texts", choices=CORPORA, help="another corpus than the benchmark's own")
    parser.add_argument("--model", choices=MODELS, help="another model than the benchmark's own")
    parser.add_argument("--rows", type=int, help="rows of the corpus (default: a minute and more of hfbatch)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slice", type=float, default=10.0, help="seconds of a turn, about")
    parser.add_argument("--routes", help="names, separated by semicolons (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--shard-rows",
        type=int,
        default=2048,
        help="hfbatch's: several shards, so that reading, tokenising and committing are part of the steady state",
    )
    parser.add_argument("--transformers-4", metavar="FOLDER", help="where transformers 4.57 lies, for its QA pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything but the values there")
    return parser


if __name__ == "__main__":
    main()
