"""transformers' pipelines, in batches of n in the order of arrival: what most people write.

`one_by_one` is the reference for values too. transformers 5 dropped the pipeline for question-answering: there the one
of 4.57 runs, from a folder that `--transformers-4` names.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.setting import LIMIT, Ran, Runner, Setting, padded_tokens

CALLS: dict[str, dict[str, Any]] = {
    "feature-extraction": {"tokenize_kwargs": {"truncation": True, "max_length": LIMIT}, "return_tensors": True},
    "text-classification": {"truncation": True, "top_k": 1},
    "token-classification": {},
    "zero-shot-classification": {},
    "question-answering": {},
    "text-generation": {"return_full_text": False},
    "image-classification": {},
    "decision": {},
}


def make(setting: Setting, batch: int) -> Runner:
    """Batches of `batch` sequences."""
    pipe = _pipeline(setting)
    inputs, value, lengths = _inputs(setting), VALUES[setting.task], setting.lengths()
    own = setting.task in ("feature-extraction", "decision")  # takes no params, or takes them with each row
    options = CALLS[setting.task] if own else {**CALLS[setting.task], **setting.params}

    def run(rows: list[int]) -> Ran:
        started = time.perf_counter()
        made = pipe([inputs[row]() for row in rows], batch_size=batch, **options)
        if setting.task == "feature-extraction":
            values: Any = np.stack([_mean(one, int(lengths[row])) for one, row in zip(made, rows, strict=True)])
        else:
            values = [value(one) for one in made]
        seconds = time.perf_counter() - started
        chosen = lengths[rows]
        counts = {"tokens": int(chosen.sum()), "padded": padded_tokens(chosen, batch)}
        plain = setting.task in ("feature-extraction", "text-classification", "token-classification", "text-generation")
        return Ran(rows, values, seconds, **(counts if plain else {}))

    return run


def _pipeline(setting: Setting) -> Any:
    if setting.task == "question-answering":
        if setting.transformers_4 is None:
            raise ValueError(
                "transformers 5 has no such pipeline; install 4.57 aside and name the folder with --transformers-4: "
                "pip install --no-deps --target FOLDER transformers==4.57.1 'huggingface_hub<1' 'tokenizers<0.23'"
            )
        sys.path.insert(0, setting.transformers_4)
    import torch
    import transformers

    torch.set_num_threads(setting.threads)
    kind = "torch_dtype" if setting.task == "question-answering" else "dtype"
    options = {kind: getattr(torch, setting.dtype), "device": setting.device}
    pipe = transformers.pipeline(setting.task, model=setting.model, **options)
    if setting.task == "text-generation" and pipe.tokenizer.pad_token_id is None:
        pipe.tokenizer.pad_token_id = pipe.model.config.pad_token_id
    if pipe.tokenizer is not None and setting.task == "text-generation":
        pipe.tokenizer.padding_side = "left"
    return pipe


def _inputs(setting: Setting) -> list[Callable[[], Any]]:
    """What each row hands to the pipeline, made in its turn: a picture is decoded then."""
    if setting.task == "image-classification":
        from PIL import Image

        return [lambda data=data: Image.open(io.BytesIO(data)) for data in setting.column("image")]
    if setting.task == "question-answering":
        pairs = zip(setting.column("question"), setting.column("context"), strict=True)
        return [lambda pair=pair: {"question": pair[0], "context": pair[1]} for pair in pairs]
    if setting.task == "decision":
        named = {name: about for option in setting.params["options"] for name, about in option.items()}
        asked = {"it": {"type": "choice", "instructions": setting.params["question"], "criteria": named}}
        return [lambda text=text: {"state": text, "questions": asked} for text in setting.column("text")]
    texts = setting.column("prompt" if setting.task == "text-generation" else "text")
    return [lambda text=text: text for text in texts]


def _mean(hidden: Any, length: int) -> np.ndarray:
    """The pipeline gives the states of padding away too; `length` says where it begins."""
    vector = hidden[0, :length].float().mean(dim=0).numpy()
    return vector / np.linalg.norm(vector)


def _label(made: Any) -> tuple[str, float]:
    best = made[0] if isinstance(made, list) else made
    return best["label"], best["score"]


def _entities(made: list[dict[str, Any]]) -> tuple[tuple, float]:
    key = tuple((one["entity_group"], int(one["start"]), int(one["end"])) for one in made)
    return key, float(np.mean([one["score"] for one in made])) if made else 0.0


def _zero_shot(made: dict[str, Any]) -> tuple[tuple, float]:
    return tuple(made["labels"]), made["scores"][0]


def _answer(made: Any) -> tuple[str, float]:
    best = made[0] if isinstance(made, list) else made
    return best["answer"], best["score"]


def _decision(made: dict[str, Any]) -> tuple[str, float]:
    best = made["it"]["choice"]
    return best, made["it"]["probabilities"][best]


def _text(made: list[dict[str, Any]]) -> tuple[str, float]:
    return made[0]["generated_text"], 0.0


VALUES: dict[str, Callable[[Any], tuple[Any, float]]] = {
    "feature-extraction": lambda made: (made, 0.0),
    "text-classification": _label,
    "image-classification": _label,
    "token-classification": _entities,
    "zero-shot-classification": _zero_shot,
    "question-answering": _answer,
    "text-generation": _text,
    "decision": _decision,
}
