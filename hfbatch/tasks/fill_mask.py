"""fill-mask: the likeliest tokens for each mask of a text.

reads   text         string with one mask token or more, written as the checkpoint writes it ([MASK], <mask>)
writes  predictions  list<struct<mask, token_str, token, score, sequence>>, masks in order, best first in each:
                     mask is the mask's number in the text from 0, score its softmax probability, sequence the
                     text with the token in place
        truncated    bool: the text was cut at the model's limit
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.base import Batch, Flat, Outputs, Task
from hfbatch.tasks.text import TextParams, by_row, limit_for, structs, tokenise

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_PREDICTION = pa.struct(
    [
        pa.field("mask", pa.int32()),
        pa.field("token_str", pa.string()),
        pa.field("token", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("sequence", pa.string()),
    ]
)


class FillMaskParams(TextParams):
    """Settings of fill-mask."""

    top_k: PositiveInt = Field(default=5, description="how many tokens a mask")
    targets: str | list[str] | None = Field(
        default=None, description="score only these words; a word of several tokens counts by its first"
    )


class FillMask(Task):
    """Masked language models; values equal transformers' FillMaskPipeline."""

    name = "fill-mask"
    auto_model = "AutoModelForMaskedLM"
    reads = pa.schema([("text", pa.string())])
    Params = FillMaskParams

    def __init__(self, params: FillMaskParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        self.limit = limit_for(self.tokenizer, self.config, params)
        self.targets = _target_ids(params.targets, checkpoint.tokenizer)

    def writes(self) -> pa.Schema:
        """predictions: one list a text, whatever the number of masks."""
        return pa.schema([("predictions", pa.list_(_PREDICTION)), ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text; a text without a mask is refused. `tokens` stays behind for postprocess."""
        sequences = tokenise(self.tokenizer, self.config, self.params, rows["text"].to_pylist())
        ids = sequences.ragged("input_ids")
        masks = (
            np.add.reduceat(ids.values == self.tokenizer.mask_token_id, ids.offsets[:-1]) if len(ids) else ids.lengths
        )
        none, cut = masks == 0, sequences.dense("truncated")
        reason = f"the text has no {self.tokenizer.mask_token}"
        refused = {int(row): RowError("no_mask", reason) for row in sequences.row[none & ~cut]}
        reason += f" in the {self.limit} tokens to which it is cut"
        refused |= {int(row): RowError("no_mask", reason) for row in sequences.row[none & cut]}
        kept = sequences.take(np.flatnonzero(masks > 0))
        columns = {**kept.columns, "tokens": kept.ragged("input_ids")}
        return Sequences(kept.row, columns, {**sequences.errors, **refused})

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Token and score (masks, k), the best first."""
        import torch

        masked = batch.tokens(batch.inputs["input_ids"]) == self.tokenizer.mask_token_id
        logits = batch.tokens(model(**batch.inputs).logits)[masked].float()
        scores = logits.softmax(dim=-1)
        if self.targets is not None:
            scores = scores[:, torch.tensor(self.targets, device=scores.device)]
        best, token = scores.topk(min(self.params.top_k, scores.shape[1]))
        if self.targets is not None:
            token = torch.tensor(self.targets, device=token.device)[token]
        ends = torch.cumsum(batch.lengths, dim=0)
        counted = torch.cat([masked.new_zeros(1, dtype=torch.int64), torch.cumsum(masked, dim=0)])
        masks = counted[ends] - counted[ends - batch.lengths]
        return {"token": Flat(token, masks), "score": Flat(best, masks)}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens as text, and the whole text with each token in place."""
        tokens, best, scores = outputs.ragged("tokens"), outputs.ragged("token"), outputs.ragged("score")
        top_k = best.values.shape[1]
        sequences: list[str] = []
        for item in range(len(outputs)):
            sequences.extend(self._filled(tokens[item], best[item]))
        flat = best.values.ravel()
        mask_number = np.concatenate([np.arange(count) for count in best.lengths]) if len(best) else best.lengths
        fields = {
            "mask": np.repeat(mask_number, top_k).astype(np.int32),
            "token_str": [self.tokenizer.decode([token]) for token in flat.tolist()],
            "token": flat.astype(np.int32),
            "score": scores.values.ravel(),
            "sequence": sequences,
        }
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        predictions = structs(fields, best.lengths * top_k, _PREDICTION)
        return pa.Table.from_arrays([predictions, pa.array(truncated)], schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """A whole text for each token of one mask; few texts of the model's limit have more masks."""
        return int(self.params.top_k * (64 + 8 * (self.limit or 8192)))

    def _filled(self, tokens: Array, best: Array) -> list[str]:
        """The text once for every mask and token; special tokens stay when other masks would vanish with them."""
        masks = np.flatnonzero(tokens == self.tokenizer.mask_token_id)
        texts = []
        for position, candidates in zip(masks, best, strict=True):
            for token in candidates:
                filled = tokens.copy()
                filled[position] = token
                filled = filled[filled != self.tokenizer.pad_token_id]
                texts.append(self.tokenizer.decode(filled.tolist(), skip_special_tokens=len(masks) == 1))
        return texts


def _target_ids(targets: str | list[str] | None, tokenizer: Any) -> list[int] | None:
    """The vocabulary ids of `targets`, each once. ValueError where the vocabulary has no mask or not the word."""
    if tokenizer.mask_token_id is None:
        raise ValueError("this model's tokenizer has no mask token: it is not a fill-mask model")
    if targets is None:
        return None
    vocabulary, ids = tokenizer.get_vocab(), set()
    for word in [targets] if isinstance(targets, str) else targets:
        pieces = [vocabulary[word]] if word in vocabulary else tokenizer.encode(word, add_special_tokens=False)
        if not pieces:
            raise ValueError(f"params.targets: {word!r} has no token in this model's vocabulary")
        ids.add(int(pieces[0]))
    return sorted(ids)
