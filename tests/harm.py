"""A checkpoint with code of its own, which does harm to the process when it reads one of certain words.

The code lies in the model's directory and is run by `trust_remote_code`: so it comes to Ray's workers and to child
processes as a user's would.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.models import bert, wordpiece

# One-letter words that no sentence of tests.models holds.
HARM = {
    "x": "exits",
    "z": "segfault",
    "q": "leaves",
    "w": "sleeps",
    "v": "keeps the lock",
    "y": "nan",
    "k": "raises",
    "j": "loses the device",
}

CODE = """
import multiprocessing
import os
import re
import signal
import sys
import time

from transformers import BertForSequenceClassification, BertTokenizerFast

from hfbatch.tally import DeviceLost


class Harmful(BertForSequenceClassification):
    def __init__(self, config):
        if getattr(config, "fails_in_child", False) and multiprocessing.parent_process() is not None:
            os._exit(9)
        super().__init__(config)

    def forward(self, input_ids, **inputs):
        said = {self.config.harm.get(str(token)) for token in input_ids.unique().tolist()}
        if "exits" in said:
            os._exit(3)
        if "segfault" in said:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "leaves" in said:
            sys.exit(4)
        if "sleeps" in said:
            time.sleep(1000)
        if "keeps the lock" in said:
            re.match("(a+)+$", "a" * 60 + "b")
        if "raises" in said:
            raise IndexError("index out of range in self")
        if "loses the device" in said:
            raise DeviceLost("CUDA error: device-side assert triggered")
        made = super().forward(input_ids, **inputs)
        for row, tokens in enumerate(input_ids.tolist()):
            if any(self.config.harm.get(str(token)) == "nan" for token in tokens):
                made.logits[row] = float("nan")
        return made


class LeavingTokenizer(BertTokenizerFast):
    def __call__(self, texts, *args, **options):
        if any("q" in text.split() for text in texts):
            sys.exit(4)
        return super().__call__(texts, *args, **options)
"""


def harmful(folder: Path, *, tokenizer: bool = False, **config) -> Path:
    """A text classifier; `tokenizer`: its tokenizer leaves the process at the word q."""
    ids = wordpiece(folder).convert_tokens_to_ids(list(HARM))
    bert(folder, harm=dict(zip(map(str, ids), HARM.values(), strict=True)), **config)
    (folder / "harmful.py").write_text(CODE)
    add(folder / "config.json", {"AutoModelForSequenceClassification": "harmful.Harmful"})
    if tokenizer:
        add(folder / "tokenizer_config.json", {"AutoTokenizer": [None, "harmful.LeavingTokenizer"]})
    return folder


def add(file: Path, auto_map: dict) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": auto_map}))
