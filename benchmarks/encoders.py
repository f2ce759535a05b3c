"""Embeddings by sentence-transformers and by bare loops: what a person who knows how would write, without a framework.

The bare loops get token ids, sorted by length, and read and write nothing; hfbatch, which does all of that, is
measured against them. `packed` puts sequences behind each other and lets each attend to itself alone, so that nothing
is padded; `padded` fills batches up to a budget of tokens. `gemm` multiplies matrices of the model's shapes only.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.costs import Shape, gemm_rate
from benchmarks.setting import LIMIT, Ran, Runner, Setting, padded_tokens


def sentence_transformers(setting: Setting, batch: int) -> Runner:
    """`encode`, which sorts all it gets by characters and cuts batches of `batch` rows."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(setting.threads)
    options = {"dtype": getattr(torch, setting.dtype)}
    model = SentenceTransformer(setting.model, device=setting.device, model_kwargs=options)
    texts, lengths = setting.column("text"), setting.lengths()

    def run(rows: list[int]) -> Ran:
        given = [texts[row] for row in rows]
        started = time.perf_counter()
        values = model.encode(given, batch_size=batch)
        seconds = time.perf_counter() - started
        order = np.argsort([-len(text) for text in given])
        padded = padded_tokens(lengths[rows][order], batch)
        return Ran(rows, np.asarray(values, dtype=np.float32), seconds, None, int(lengths[rows].sum()), padded)

    return run


def padded(setting: Setting, budget: int) -> Runner:
    """Batches of at most `budget` tokens with padding, each padded to its own longest."""
    import torch

    model, ids, lengths = _load(setting, "sdpa")

    def embed(batch: np.ndarray) -> Any:
        longest = int(lengths[batch].max())
        tokens, mask = np.zeros((len(batch), longest), np.int64), np.zeros((len(batch), longest), np.int64)
        for place, row in enumerate(batch):
            tokens[place, : lengths[row]], mask[place, : lengths[row]] = ids[row], 1
        given, seen = (torch.from_numpy(array).to(setting.device) for array in (tokens, mask))
        hidden = model(input_ids=given, attention_mask=seen)[0].float()
        return (hidden * seen.unsqueeze(-1)).sum(dim=1) / seen.sum(dim=1, keepdim=True)

    return _runner(embed, lengths, budget, pads=True)


def packed(setting: Setting, budget: int, prepacked: bool = False) -> Runner:
    """Batches of at most `budget` tokens, none of them padding. `prepacked`: weights in oneDNN's own layout."""
    import torch

    groups: list[tuple[int, int, int]] = []  # (first token, sequences, length of each) of the batch in hand
    _register_packed(groups, setting.device)
    model, ids, lengths = _load(setting, "benchmark_packed")
    if prepacked:
        _prepack(model, budget)

    def embed(batch: np.ndarray) -> Any:
        own = lengths[batch]
        ends = np.cumsum(own)
        tokens = torch.from_numpy(np.concatenate([ids[row] for row in batch])).to(setting.device)
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in own])).to(setting.device)
        sizes, firsts, counts = np.unique(-own, return_index=True, return_counts=True)
        starts = (ends - own)[firsts]
        groups[:] = [(int(s), int(n), -int(z)) for s, n, z in zip(starts, counts, sizes, strict=True)]
        hidden = model(input_ids=tokens[None], position_ids=positions[None])[0][0].float()
        row = torch.from_numpy(np.repeat(np.arange(len(batch)), own)).to(hidden.device)
        summed = torch.zeros(len(batch), hidden.shape[1], device=hidden.device).index_add_(0, row, hidden)
        return summed / torch.from_numpy(own).to(hidden.device).unsqueeze(-1)

    return _runner(embed, lengths, budget, pads=False)


def gemm(setting: Setting, seconds: float = 4.0) -> Runner:
    """FLOP/s at the model's shapes, and no values."""
    import torch

    torch.set_num_threads(setting.threads)
    shape = Shape.of(json.loads((Path(setting.model) / "config.json").read_text()))
    tokens = 2048 if setting.device == "cpu" else 16384

    def run(rows: list[int]) -> Ran:
        started = time.perf_counter()
        rate = gemm_rate(shape, setting.device, setting.dtype, seconds, tokens)
        return Ran([], [], time.perf_counter() - started, flops_per_s=rate)

    return run


def _load(setting: Setting, attention: str) -> tuple[Any, list[np.ndarray], np.ndarray]:
    """The model, and each row's token ids with their number."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(setting.threads)
    options = {"dtype": getattr(torch, setting.dtype), "attn_implementation": attention}
    model = AutoModel.from_pretrained(setting.model, **options).eval().to(setting.device)
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    made = tokenizer(setting.column("text"), truncation=True, max_length=LIMIT, verbose=False)["input_ids"]
    ids = [np.array(one, dtype=np.int64) for one in made]
    return model, ids, np.array([len(one) for one in ids], dtype=np.int64)


def _runner(embed: Any, lengths: np.ndarray, budget: int, pads: bool) -> Runner:
    """Sort the rows, cut them by tokens, embed each batch, put the vectors back into the rows' order."""
    import torch

    def run(rows: list[int]) -> Ran:
        started = time.perf_counter()
        order = np.argsort(-lengths[rows], kind="stable")
        given, vectors, start, most = np.array(rows)[order], [], 0, 0
        with torch.inference_mode():
            while start < len(given):
                longest = int(lengths[given[start]])
                batch = given[start : start + max(1, budget // longest)]
                vectors.append(torch.nn.functional.normalize(embed(batch)).cpu())
                start, most = start + len(batch), most + longest * len(batch)
        values = np.empty((len(rows), vectors[0].shape[1]), np.float32)
        values[order] = torch.cat(vectors).numpy()
        tokens = int(lengths[rows].sum())
        return Ran(rows, values, time.perf_counter() - started, None, tokens, most if pads else tokens)

    return run


def _register_packed(groups: list[tuple[int, int, int]], device: str) -> None:
    """An attention of transformers that keeps to sequences; `groups` tells it, before each pass, where they are."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def grouped(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
    ) -> Any:
        """`query`, `key`, `value` (1, heads, tokens, width); sequences of one length are one call."""
        out = torch.empty_like(query.transpose(1, 2))
        for start, count, length in groups:
            part = slice(start, start + count * length)
            split = (x[0, :, part].unflatten(1, (count, length)).transpose(0, 1) for x in (query, key, value))
            made = scaled_dot_product_attention(*split, scale=scaling)
            out[0, part].unflatten(0, (count, length)).copy_(made.transpose(1, 2))
        return out, None

    def varlen(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any) -> Any:
        """FlashAttention's: all sequences in one call. Needs a GPU and half precision."""
        from torch.nn.attention.varlen import varlen_attn

        sizes = [length for _, count, length in groups for _ in range(count)]
        ends = torch.tensor([0, *np.cumsum(sizes).tolist()], dtype=torch.int32, device=query.device)
        given = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return varlen_attn(*given, ends, ends, max(sizes), max(sizes), scale=scaling)[None], None

    AttentionInterface.register("benchmark_packed", grouped if device == "cpu" else varlen)
    AttentionMaskInterface.register("benchmark_packed", lambda *args, **kwargs: None)


def _prepack(model: Any, tokens: int) -> None:
    """Replace the linears by oneDNN's with their weights laid out once, for `tokens` rows."""
    import torch

    class Linear(torch.nn.Module):
        def __init__(self, plain: torch.nn.Linear) -> None:
            super().__init__()
            self.weight = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), tokens)
            self.bias = plain.bias

        def forward(self, given: Any) -> Any:
            return torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "")

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Linear(child))
