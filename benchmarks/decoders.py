"""Greedy text by `model.generate`: one prompt at a time, the reference, and static batches sorted by length."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.setting import Ran, Runner, Setting


def static_batches(setting: Setting, batch: int) -> Runner:
    """Batches of `batch` prompts of about one length, padded on the left; each ends when its last text has."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(setting.threads)
    tokenizer = AutoTokenizer.from_pretrained(setting.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=getattr(torch, setting.dtype)).eval()
    model.to(setting.device)
    pad = model.config.pad_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids: list[list[int]] = tokenizer(setting.column("prompt"))["input_ids"]

    def texts(chosen: np.ndarray) -> tuple[list[str], int]:
        longest = max(len(ids[row]) for row in chosen)
        tokens = torch.full((len(chosen), longest), 0 if pad is None else pad)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(chosen):
            tokens[place, longest - len(ids[row]) :] = torch.tensor(ids[row])
            mask[place, longest - len(ids[row]) :] = 1
        given: dict[str, Any] = {"input_ids": tokens.to(setting.device), "attention_mask": mask.to(setting.device)}
        made = model.generate(**given, **setting.params, pad_token_id=pad)[:, longest:]
        return tokenizer.batch_decode(made, skip_special_tokens=True), made.numel()

    def run(rows: list[int]) -> Ran:
        started, values, new = time.perf_counter(), dict[int, str](), 0
        order = np.array(sorted(rows, key=lambda row: -len(ids[row])))
        for start in range(0, len(order), batch):
            made, count = texts(order[start : start + batch])
            values.update(zip(order[start : start + batch].tolist(), made, strict=True))
            new += count
        seconds = time.perf_counter() - started
        return Ran(rows, [(values[row], 0.0) for row in rows], seconds, notes={"new_tokens_per_s": new / seconds})

    return run
