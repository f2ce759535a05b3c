"""text-ranking: how well each text answers a query, scored by a cross-encoder (a reranker).

reads   query      string
        text       string, or a list of strings: the texts to be ranked for the query
writes  score      float32, higher is better; for a list of texts: scores, a list<float32> in the texts' order
        truncated  bool: query and text together were cut at the model's limit, the longer one first
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from hfbatch.kinds import TEXT, TEXTS, item_of
from hfbatch.sequences import Sequences
from hfbatch.tasks.base import Batch, Outputs, Task
from hfbatch.tasks.pairs import Pairs, entries_of, pair_limit, tokenise_pairs
from hfbatch.tasks.text import TextParams, by_row

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_FUNCTIONS = {"Sigmoid": "sigmoid", "Identity": "none"}  # of torch.nn -> ours


class TextRankingParams(TextParams):
    """Settings of text-ranking."""

    function_to_apply: Literal["none", "sigmoid"] | None = Field(
        default=None,
        description="logit to score; null: what the checkpoint names for sentence-transformers, or sigmoid",
    )


class TextRanking(Task):
    """Sequence classification heads of one label; values equal sentence-transformers' CrossEncoder.predict."""

    name = "text-ranking"
    auto_model = "AutoModelForSequenceClassification"
    reads_first = True
    reads = pa.schema([("query", TEXT), ("text", TEXT)])
    Params = TextRankingParams

    def __init__(self, params: TextRankingParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        if self.config.num_labels != 1:
            raise ValueError(
                f"it has {self.config.num_labels} labels, and a cross-encoder that ranks has one; "
                "for labels of a pair take text-classification with text_pair"
            )
        self.lists = self.given.field("text").type.equals(TEXTS)
        self.limit = pair_limit(self.tokenizer, self.config, params)
        self.function = params.function_to_apply or _function_of(self.config)

    @classmethod
    def reads_for(cls, params: TextRankingParams, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """A column of lists is read as lists."""
        column = mapped.get("text", "text")
        lists = column in schema.names and item_of(schema.field(column).type) is not None
        return pa.schema([("query", TEXT), ("text", TEXTS if lists else TEXT)])

    def writes(self) -> pa.Schema:
        """A score a text."""
        scores = ("scores", pa.list_(pa.float32())) if self.lists else ("score", pa.float32())
        return pa.schema([scores, ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, behind its query."""
        queries, own = rows["query"].to_pylist(), rows["text"].to_pylist()
        texts, row, errors = entries_of(own if self.lists else [[text] for text in own], "text")
        pairs = Pairs([queries[i] for i in row], texts, row)
        made = tokenise_pairs(self.tokenizer, pairs, self.limit, "longest_first" if self.params.truncation else None)
        return Sequences(made.row, made.columns, {**errors, **made.errors})

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Scores (sequences,), float32."""
        logits = model(**batch.inputs).logits[:, 0].float()
        return {"score": logits.sigmoid() if self.function == "sigmoid" else logits}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """The scores of a row's texts, in their order."""
        column = pa.array(outputs.dense("score"), pa.float32())
        if self.lists:
            counts = np.bincount(outputs.row, minlength=len(rows))
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
            column = pa.ListArray.from_arrays(offsets, column)
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([column, pa.array(truncated)], schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """4 bytes a text."""
        return 16384 if self.lists else 256


def _function_of(config: Any) -> str:
    """What sentence-transformers applies to the model's logits. ValueError where that is a function of its own."""
    told = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    told = told or getattr(config, "sbert_ce_default_activation_function", None)
    if told is None:
        return "sigmoid"
    function = _FUNCTIONS.get(str(told).rpartition(".")[2])
    if function is None:
        raise ValueError(f"its config names the activation {told!r}; write params.function_to_apply: none or sigmoid")
    return function
