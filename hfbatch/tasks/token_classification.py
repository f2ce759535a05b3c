"""token-classification: the entities of each text: names, places, parts of speech.

reads   text       string
writes  entities   with aggregation_strategy: none a list<struct<entity, score, index, word, start, end>>, one a
                   token; else a list<struct<entity_group, score, word, start, end>>, one a run of tokens of one
                   label. score is the softmax probability, or their mean; start and end count characters of the
                   text, null where the tokenizer cannot tell
        truncated  bool: the text was cut at the model's limit; with stride it is read in windows
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Ragged, Sequences
from hfbatch.tasks.base import Batch, Flat, Outputs, Task
from hfbatch.tasks.entities import Entity, Spans, groups, is_subword, without_overlaps, words
from hfbatch.tasks.text import beginning, by_row, limit_for, structs, tokenise
from hfbatch.tasks.windows import Inputs, WindowParams, check_stride, refused, rows_of, windows, without

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_PLACE = [pa.field("word", pa.string()), pa.field("start", pa.int32()), pa.field("end", pa.int32())]
_TOKEN = pa.struct(
    [pa.field("entity", pa.string()), pa.field("score", pa.float32()), pa.field("index", pa.int32()), *_PLACE]
)
_GROUP = pa.struct([pa.field("entity_group", pa.string()), pa.field("score", pa.float32()), *_PLACE])


class TokenClassificationParams(WindowParams):
    """Settings of token-classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = Field(
        default="none",
        description="none: every token; simple: runs of tokens of one label; first, average, max: runs of words, "
        "labelled by a word's first token, by the mean of its tokens, or by its surest",
    )
    ignore_labels: list[str] = Field(default=["O"], description="entities that are left out")


class TokenClassification(Task):
    """Token classification heads; values equal transformers' TokenClassificationPipeline."""

    name = "token-classification"
    aliases = ("ner",)
    auto_model = "AutoModelForTokenClassification"
    reads = pa.schema([("text", pa.string())])
    Params = TokenClassificationParams

    def __init__(
        self, params: TokenClassificationParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        self.limit = limit_for(self.tokenizer, self.config, params)
        self.labels = [self.config.id2label[number] for number in range(self.config.num_labels)]
        self.joins = params.aggregation_strategy != "none"
        self.names = [label.split("-", 1)[-1] if self.joins else label for label in self.labels]
        if params.aggregation_strategy in ("first", "average", "max") and not self.tokenizer.is_fast:
            raise ValueError(
                f"params.aggregation_strategy: {params.aggregation_strategy} needs a fast tokenizer (tokenizer.json), "
                "and this model has none; write simple or none"
            )
        if params.stride is not None:
            check_stride(self.tokenizer, self.limit, params.stride)
            if not self.joins:
                raise ValueError("params.stride needs an aggregation_strategy other than none; write simple")
        if unknown := sorted({*params.ignore_labels} - {*self.names, "O"}):
            known = ", ".join(dict.fromkeys(self.names))
            raise ValueError(f"params.ignore_labels: no entity is called {unknown[0]!r}; write some of {known}")

    def writes(self) -> pa.Schema:
        """entities: one list a text."""
        return pa.schema([("entities", pa.list_(_GROUP if self.joins else _TOKEN)), ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text or window; `tokens`, `special` and `offsets` (characters) are for postprocess."""
        texts = rows["text"].to_pylist()
        if not self.tokenizer.is_fast:
            made = tokenise(self.tokenizer, self.config, self.params, texts)
            ids = made.ragged("input_ids")
            inside = {self.tokenizer.unk_token_id, self.tokenizer.mask_token_id}  # these stand for text
            special = np.isin(ids.values, sorted({*self.tokenizer.all_special_ids} - inside))
            return Sequences(
                made.row, {**made.columns, "tokens": ids, "special": Ragged(special, ids.offsets)}, made.errors
            )
        return self._windowed(texts)

    def _windowed(self, texts: list[str]) -> Sequences:
        """All windows of each text with a stride, else the first alone."""
        whole, stride, limit = texts, self.params.stride, self.limit
        if stride is None and limit is not None:
            texts = [beginning(self.tokenizer, text, limit) for text in whole]
        errors, inputs, row, truncated = refused(texts), Inputs(self.tokenizer), list[int](), list[bool]()
        offsets, special = list[Array](), list[list[int]]()
        found = windows(self.tokenizer, without(texts, errors), limit=limit, stride=stride or 0)
        for number, encodings in groupby(found, key=lambda window: window[0]):
            own = [encoding for _, encoding in encodings]
            if number not in errors and not own[0].ids:
                errors[number] = RowError("empty_input", "the text has no tokens")
            if stride is None and len(own) > 1 and not self.params.truncation:
                tokens = sum(len(one.ids) for one in own) - (len(own) - 1) * sum(own[0].special_tokens_mask)
                more = "over " if len(texts[number]) < len(whole[number]) else ""
                errors[number] = RowError("too_long", f"{more}{tokens} tokens, the limit is {limit}")
            for encoding in () if number in errors else own if stride is not None else own[:1]:
                inputs.add(encoding)
                row.append(number)
                truncated.append(stride is None and len(own) > 1)
                offsets.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2))
                special.append(encoding.special_tokens_mask)
        columns = inputs.columns()
        columns |= {"tokens": columns["input_ids"], "special": Ragged.from_lists(special, dtype=bool)}
        columns |= {"offsets": rows_of(offsets, 2), "truncated": np.array(truncated, dtype=bool)}
        return Sequences(np.array(row, dtype=np.int64), columns, errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """For every token the label and its probability (tokens,); to average over words all of them (tokens, n)."""
        scores = batch.tokens(model(**batch.inputs).logits).float().softmax(dim=-1)
        if self.params.aggregation_strategy == "average":
            return {"score": Flat(scores, batch.lengths)}
        best, label = scores.max(dim=-1)
        return {"label": Flat(label, batch.lengths), "score": Flat(best, batch.lengths)}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Tokens to entities, and those of a text's windows to one list."""
        texts = rows["text"].to_pylist()
        found: list[list[Entity]] = [[] for _ in texts]
        for window, entity in self._entities(outputs, texts):
            found[outputs.row[window]].append(entity)
        for row in np.flatnonzero(np.bincount(outputs.row, minlength=len(texts)) > 1):
            found[row] = without_overlaps(found[row])
        flat = [entity for own in found for entity in own]
        fields = {name: [getattr(entity, name) for entity in flat] for name in Entity._fields}
        kind = self.writes().field("entities").type
        fields |= {"entity_group" if self.joins else "entity": fields["name"], "index": fields["position"]}
        entities = structs(fields, [len(own) for own in found], kind.value_type)
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([entities, pa.array(truncated)], schema=self.writes())

    def _entities(self, outputs: Sequences, texts: list[str]) -> Iterator[tuple[int, Entity]]:
        """(sequence, entity), in order, without those that are ignored."""
        ids, score = outputs.ragged("tokens"), outputs.ragged("score").values
        window = np.repeat(np.arange(len(ids)), ids.lengths)
        token = np.flatnonzero(~outputs.ragged("special").values)
        label = outputs.ragged("label").values if "label" in outputs.columns else np.zeros(len(score), dtype=np.int64)
        every = np.arange(len(score))
        units = Spans(window, every, every, label, score).take(token)
        way = self.params.aggregation_strategy
        if way in ("first", "average", "max"):
            units = words(units, self._subwords(outputs, texts)[token], way)
        spans, starts = groups(units, self.labels) if self.joins else (units, np.arange(len(units)))
        ends, ignored = np.append(starts[1:], len(units)), np.isin(self.names, self.params.ignore_labels)
        offsets = outputs.ragged("offsets").values if "offsets" in outputs.columns else None
        for number in np.flatnonzero(~ignored[spans.label]):
            first, last, of = int(spans.first[number]), int(spans.last[number]), int(spans.window[number])
            strings = self._strings(ids.values, offsets, first, last, texts[outputs.row[of]])
            own = slice(starts[number], ends[number])
            pieces = [
                strings[a - first : b + 1 - first] for a, b in zip(units.first[own], units.last[own], strict=True)
            ]
            join = self.tokenizer.convert_tokens_to_string
            parts = [join(piece) if way in ("first", "average", "max") else piece[0] for piece in pieces]
            entity = Entity(
                name=self.names[spans.label[number]],
                score=float(spans.score[number]),
                position=first - int(ids.offsets[of]),
                word=join(parts) if self.joins else parts[0],
                start=None if offsets is None else int(offsets[first, 0]),
                end=None if offsets is None else int(offsets[last, 1]),
            )
            yield of, entity

    def _strings(self, ids: Array, offsets: Array | None, first: int, last: int, text: str) -> list[str]:
        """The tokens from `first` to `last` as the vocabulary has them, an unknown one as it stands in `text`."""
        strings: list[str] = self.tokenizer.convert_ids_to_tokens(ids[first : last + 1].tolist())
        if offsets is not None:
            for place in np.flatnonzero(ids[first : last + 1] == self.tokenizer.unk_token_id):
                strings[place] = text[slice(*offsets[first + place])]
        return strings

    def _subwords(self, outputs: Sequences, texts: list[str]) -> Array:
        """(tokens,) bool, see is_subword."""
        ids, offsets = outputs.ragged("tokens"), outputs.ragged("offsets")
        of = [texts[row] for row in outputs.row]
        found = [is_subword(self.tokenizer, ids[i], offsets[i], text) for i, text in enumerate(of)]
        return np.concatenate(found) if found else np.zeros(0, dtype=bool)

    def max_bytes_per_row(self) -> int:
        """An entity for every token of a text of the model's limit; longer ones have few."""
        return 64 * (self.limit or 8192)
