"""question-answering: the part of a context that answers a question, as transformers' pipeline found it until 4.57.

reads   question   string
        context    string, of any length: what is over the limit is read in windows
writes  answer     string, a part of the context; with top_k other than 1: answers, a list<struct<answer, score,
                   start, end>>, best first
        score      float32: probability of its start times that of its end, summed over equal answers
        start      int32, characters of the context before the answer
        end        int32, characters up to its end
        truncated  bool: the question was cut to max_question_len tokens, as it left no room for the context
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.base import Batch, Outputs, Params, Task
from hfbatch.tasks.text import by_row, model_max_length, structs
from hfbatch.tasks.windows import Inputs, refused, rows_of, windows, without

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_FIELDS = [
    pa.field("answer", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("start", pa.int32()),
    pa.field("end", pa.int32()),
]
_ANSWER = pa.struct(_FIELDS)


class QuestionAnsweringParams(Params):
    """Settings of question-answering."""

    top_k: PositiveInt = Field(default=1, description="how many answers, best first")
    doc_stride: NonNegativeInt | None = Field(
        default=None, description="tokens that windows of a context share; null: half of max_seq_len, at most 128"
    )
    max_seq_len: PositiveInt | None = Field(
        default=None, description="tokens of question and window together; null: the model's limit, at most 384"
    )
    max_question_len: PositiveInt = Field(
        default=64, description="tokens to which a question is cut, if it leaves no room for the context otherwise"
    )
    max_answer_len: PositiveInt = Field(default=15, description="longest answer in tokens")
    handle_impossible_answer: bool = Field(default=False, description="let the empty answer compete, with its score")
    align_to_words: bool = Field(default=True, description="widen answers to whole words; false for Chinese, Japanese")


class QuestionAnswering(Task):
    """Span heads; values equal the QuestionAnsweringPipeline of transformers 4.57, which transformers 5 has not."""

    name = "question-answering"
    auto_model = "AutoModelForQuestionAnswering"
    reads = pa.schema([("question", pa.string()), ("context", pa.string())])
    unused_weights = ("pooler.",)
    Params = QuestionAnsweringParams

    def __init__(self, params: QuestionAnsweringParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        if not self.tokenizer.is_fast:
            raise ValueError("its tokenizer is not a fast one (tokenizer.json), which tells where answers stand")
        limit = model_max_length(self.tokenizer, self.config)
        self.size = params.max_seq_len or min(limit or 384, 384)
        self.stride = min(self.size // 2, 128) if params.doc_stride is None else params.doc_stride
        self.room = self.size - self.tokenizer.num_special_tokens_to_add(pair=True)  # for question and window
        if limit is not None and self.size > limit:
            raise ValueError(
                f"params.max_seq_len is {self.size}, and this model takes {limit} tokens; write that or less"
            )
        if self.stride >= self.room:
            raise ValueError(f"params.doc_stride is {self.stride}, and a window has {self.room} tokens; write less")
        self.question_first = self.tokenizer.padding_side == "right"

    def writes(self) -> pa.Schema:
        """The answer, or answers when top_k asks for several."""
        fields = _FIELDS if self.params.top_k == 1 else [pa.field("answers", pa.list_(_ANSWER))]
        return pa.schema([*fields, ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a window. `context`: its first token of the context and the one after the last.

        `places` (tokens, 4): the characters of a token, and those of its word, -1 where it has none.
        """
        questions, contexts = rows["question"].to_pylist(), rows["context"].to_pylist()
        errors = {**refused(questions), **refused(contexts)}
        for name, texts in (("question", questions), ("context", contexts)):
            empty = RowError("empty_input", f"{name} is empty")
            errors |= {row: empty for row, text in enumerate(texts) if not text}
        questions, contexts = without(questions, errors), without(contexts, errors)
        cut = self._make_room(questions, contexts, errors)
        pair = (questions, contexts) if self.question_first else (contexts, questions)
        found = windows(
            self.tokenizer,
            *(without(texts, errors) for texts in pair),
            limit=self.size,
            stride=self.stride,
            cut="only_second" if self.question_first else "only_first",
        )
        inputs, row, ranges, places = Inputs(self.tokenizer, pairs=True), list[int](), list[tuple[int, int]](), []
        for number, encoding in found:
            if number not in errors:
                inputs.add(encoding)
                row.append(number)
                ranges.append(_context(encoding, int(self.question_first)))
                places.append(_places(encoding, *ranges[-1]))
        columns = inputs.columns() | {
            "context": np.array(ranges, dtype=np.int32).reshape(-1, 2),
            "places": rows_of(places, 4),
            "truncated": np.isin(row, sorted(cut)),
        }
        return Sequences(np.array(row, dtype=np.int64), columns, errors)

    def _make_room(self, questions: list[str], contexts: list[str], errors: dict[int, RowError]) -> set[int]:
        """Cut, in place, questions that leave no room for windows of their context; the rows of those.

        The pipeline of 4.57 fails there, and never cuts a question otherwise.
        """
        cut = set[int]()
        for row, encoding in windows(self.tokenizer, questions, limit=None):
            tokens = len(encoding.ids) - sum(encoding.special_tokens_mask)
            if row in errors or self.room - tokens > self.stride:
                continue
            if tokens + self._count(contexts[row]) <= self.room:
                continue
            own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)[: self.params.max_question_len]
            questions[row] = questions[row][: encoding.offsets[own[-1]][1]]
            cut.add(row)
            left = self.room - self._count(questions[row])
            if left <= self.stride:
                message = f"a question of {tokens} tokens leaves {max(left, 0)} of {self.size} for the context"
                errors[row] = RowError("too_long", f"{message}; set max_question_len or doc_stride lower")
        return cut

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """The likeliest spans of each window: `start` and `end` (sequences, k) are tokens, `score` 0 is no span.

        `empty` (sequences,) is the probability that there is no answer: that the first token is start and end.
        """
        import torch

        made = model(**batch.inputs)
        context = torch.from_numpy(batch.sequences.dense("context")).to(made.start_logits.device)
        position = torch.arange(made.start_logits.shape[1], device=context.device)
        inside = (position >= context[:, :1]) & (position < context[:, 1:])
        usable = inside  # what the probabilities are shared out to: the context and, for "no answer", the first token
        if self.tokenizer.cls_token_id is not None:
            usable = inside | ((batch.inputs["input_ids"] == self.tokenizer.cls_token_id) & (batch.mask == 1))
        begins, ends = (
            logits.float().masked_fill(~usable, -10000.0).softmax(dim=-1)  # not -inf: a window may have none
            for logits in (made.start_logits, made.end_logits)
        )
        empty = begins[:, 0] * ends[:, 0]
        inside = inside & (position > 0)
        begins, ends = begins * inside, ends * inside
        longest = min(self.params.max_answer_len, len(position))
        later = torch.nn.functional.pad(ends, (0, longest - 1)).unfold(1, longest, 1)  # (sequences, start, tokens - 1)
        scores = (begins.unsqueeze(-1) * later).flatten(1)
        best, place = scores.topk(min(self._candidates, scores.shape[1]))
        more = (0, self._candidates - best.shape[1])
        start, end = place // longest, place // longest + place % longest
        padded = {"start": start, "end": end, "score": best}
        return {name: torch.nn.functional.pad(value, more) for name, value in padded.items()} | {"empty": empty}

    @property
    def _candidates(self) -> int:
        """Spans of a window that compete; of those that are widened to words some become the same."""
        return int(self.params.top_k * 2 + 10 if self.params.align_to_words else self.params.top_k)

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Spans of tokens to parts of the context; equal answers of all windows of a row add up."""
        contexts = rows["context"].to_pylist()
        found: list[dict[str, _Answer]] = [{} for _ in contexts]
        empty = np.full(len(contexts), np.inf)
        np.minimum.at(empty, outputs.row, outputs.dense("empty"))
        for item, row in enumerate(outputs.row):
            for start, end, score in self._spans(outputs, item):
                text = contexts[row][start:end]
                known = found[row].get(text.lower(), _Answer(text, 0.0, start, end))
                found[row][text.lower()] = known._replace(score=known.score + score)
        best = [self._best(list(own.values()), score) for own, score in zip(found, empty.tolist(), strict=True)]
        flat = {name: [getattr(answer, name) for own in best for answer in own] for name in _Answer._fields}
        if self.params.top_k == 1:
            columns = [pa.array(flat[entry.name], entry.type) for entry in _FIELDS]
        else:
            columns = [structs(flat, [len(own) for own in best], _ANSWER)]
        truncated = by_row(outputs.dense("truncated"), outputs.row, len(rows))
        return pa.Table.from_arrays([*columns, pa.array(truncated)], schema=self.writes())

    def _spans(self, outputs: Sequences, item: int) -> list[tuple[int, int, float]]:
        """(start, end, score) of a window's candidates, in characters of the context, best first."""
        score = outputs.dense("score")[item]
        real, begin = score > 0, outputs.dense("context")[item, 0]
        places = outputs.ragged("places")[item]
        first = places[outputs.dense("start")[item][real] - begin]
        last = places[outputs.dense("end")[item][real] - begin]
        whole = (first[:, 2] >= 0) & (last[:, 3] >= 0)
        if not self.params.align_to_words:
            whole[:] = False
        start, end = np.where(whole, first[:, 2], first[:, 0]), np.where(whole, last[:, 3], last[:, 1])
        return list(zip(start.tolist(), end.tolist(), score[real].tolist(), strict=True))

    def _best(self, answers: list[_Answer], empty: float) -> list[_Answer]:
        """The top_k answers of a row, the first of equals first; the empty one where there is none."""
        if self.params.handle_impossible_answer:
            answers = [*answers, _Answer("", empty, 0, 0)]
        answers = answers or [_Answer("", 0.0, 0, 0)]
        return sorted(answers, key=lambda answer: -answer.score)[: self.params.top_k]

    def max_bytes_per_row(self) -> int:
        """top_k answers, of some 16 characters a token."""
        return int(self.params.top_k * (16 * self.params.max_answer_len + 32))


class _Answer(NamedTuple):
    answer: str
    score: float
    start: int
    end: int


def _context(encoding: Any, which: int) -> tuple[int, int]:
    """The first token of the context and the one after its last; (0, 0) where the window has none."""
    own = [number for number, sequence in enumerate(encoding.sequence_ids) if sequence == which]
    return (own[0], own[-1] + 1) if own else (0, 0)


def _places(encoding: Any, first: int, stop: int) -> Array:
    """(tokens, 4) int32: start and end of each token of the context, and of its word's part in this window."""
    token = np.array(encoding.offsets[first:stop], dtype=np.int32).reshape(-1, 2)
    word = np.array([-1 if one is None else one for one in encoding.word_ids[first:stop]], dtype=np.int64)
    starts = np.flatnonzero(np.append(True, word[1:] != word[:-1])[: len(word)])
    sizes = np.diff(np.append(starts, len(word)))
    ends = starts + sizes - 1
    whole = np.stack([np.repeat(token[starts, 0], sizes), np.repeat(token[ends, 1], sizes)], axis=1)
    whole[word < 0] = -1
    return np.concatenate([token, whole], axis=1)
