"""The golden values of transformers 4.57 for the tasks that turn a text into another; see tests/golden/record.py."""

from __future__ import annotations

import json
from pathlib import Path

from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case
from tests.zoo import text

GOLDEN = Path(__file__).parent.parent / "golden"


def check_golden(task: str, column: str, kind: str, models: Path, folder: Path) -> int:
    """Every record of `task` for the checkpoint `kind`, which is made in `models`. Returns the values compared.

    Where 4.57 raised, because it went beyond the model's positions, this need not. And where the checkpoint sets no
    max_length of its own, as T5, 4.57 took no notice of the one that it was called with and wrote 256 tokens.
    """
    compared = 0
    for record in json.loads((GOLDEN / f"{task.split('_')[0]}.json").read_text())["records"]:
        if (record["task"], record["kind"]) != (task, kind):
            continue
        model = models / kind
        if not model.exists():
            getattr(text, kind)(model, record["head"], **record["config"])
        rows = {"text": [each["text"] for each in record["inputs"]]}
        made = run_inline(plan_of(Case(task, model, rows, record["params"]).job(folder)))
        for value, expected in zip(made[column].to_pylist(), record["expected"], strict=True):
            if isinstance(expected, list):
                made_texts, texts = value if isinstance(value, list) else [value], [each[column] for each in expected]
                if kind == "t5" and "max_length" in record["params"]:
                    texts = [texts[0][: len(value)]]
                assert made_texts == texts, record["params"]
                compared += 1
    return compared
