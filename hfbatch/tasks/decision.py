"""decision: which of some options fits a text, by the probability that a language model gives to each.

reads   text           string
        options        list of strings: the options of each row, where params do not name them for all rows; or
        request        string, in place of both: JSON {state, questions}, as transformers' decision pipeline takes it
writes  answer         string: the likeliest option, always one of them
        score          float32: its probability
        probabilities  list<float32>: of all options, in their order; they sum to 1
        expected       float32, with kind: score: the mean of the options, which are numbers, by their probability
        truncated      bool: the end of the text was cut at the model's limit; question and options never are
        of a request   result, string: JSON, question -> answer, as the pipeline gives it; and truncated

Any chat model answers, in one pass over each prompt: what counts is how likely its next token is the label of an
option (A, B, C ...; Yes and No). Prompt, labels and temperature are transformers', those of the checkpoint's
decision.json and decision_template.jinja where it has them. With compare: options, and where the model has no token for
the labels or there are more options than labels, the options themselves are compared: each by the sum of the
log-probabilities of its tokens, so that an option which another begins with is never the less likely of the two.

What all prompts begin with is computed once. As transformers asks, that is what the chat template writes before the
text; with question_first: true it is the question with its options as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from hfbatch.errors import RowError
from hfbatch.kinds import TEXT, TEXTS
from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.adapted import from_json
from hfbatch.tasks.asking import Asker, Limit, Prompt, Question, Style
from hfbatch.tasks.base import Batch, Outputs, Task
from hfbatch.tasks.options import YES_NO, DecisionParams, Words, checked, decision_config, label_tokens, sequences_of
from hfbatch.tasks.prefill import HOST, Prefill, shared_front
from hfbatch.tasks.text import TextParams, by_row, limit_for

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_TYPES = {"choice": "choice", "score": "score", "yes_no": "noul"}  # transformers' names for them
_BEGINNINGS = ("a", "7", " a", "\n", "The", "電", "(", '"', "é")  # texts whose prompts tell what all begin with


class Decision(Task):
    """Causal language models; with compare: labels probabilities equal transformers' DecisionPipeline."""

    name = "decision"
    auto_model = "AutoModelForCausalLM"
    reads = pa.schema([("text", TEXT)])
    optional = pa.schema([("options", TEXTS), ("request", TEXT)])
    inputs = ("input_ids",)
    host = HOST
    single = False
    batch_tokens = (2048, 16384)
    Params = DecisionParams

    def __init__(self, params: DecisionParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        config, tokenizer = decision_config(checkpoint), checkpoint.copy_tokenizer()
        self.decision, self.requests = config, "request" in self.given.names
        self.labels = label_tokens(tokenizer, config)
        self.generates = self.spelled = self._spells()  # then sequences branch, and nothing is packed
        limit = limit_for(tokenizer, self.config.get_text_config(decoder=True), params)
        style = Style(params.system, params.question_first, self.spelled)
        self.asker = Asker(tokenizer, config, style, Limit(limit, params.truncation))
        self.options = [*YES_NO] if params.kind == "yes_no" else [*params.meanings] or None
        kinds = self.labels if self.requests else [_TYPES[params.kind]]
        self.tokens = None if self.spelled else sorted({token for kind in kinds for token in self.labels[kind]})
        self.question: Question = None  # of all rows
        try:
            self.question = None if self.options is None else self._question(self.options)
            self.probes = [prompt for asked in self._probes() for prompt in self._prompts(*asked)]
        except RowError as error:
            about = "question" if error.code == "too_long" else "options"
            raise ValueError(f"params.{about}: {error.message}") from error
        self.front = shared_front([prompt.ids for prompt, _ in self.probes])
        self._passes: WeakKeyDictionary[Any, Prefill] = WeakKeyDictionary()

    def _spells(self) -> bool:
        """Whether the options themselves are compared. ValueError where there is no other way and that is not asked."""
        params, usable = self.params, len(self.labels[_TYPES[self.params.kind]])
        if self.requests:
            return False
        wanted = 2 if params.options is None or params.kind == "yes_no" else len(params.options)
        if params.compare is None:
            return usable < wanted and self.decision.chat_template is None
        if params.compare == "labels" and usable < wanted:
            raise ValueError(f"params.compare: it has tokens for {usable} labels, not for {wanted}: write options")
        return bool(params.compare == "options")

    @classmethod
    def auto_class(cls, config: Any) -> str:
        """Also for models that take pictures beside text."""
        if any(name.endswith("ForCausalLM") for name in getattr(config, "architectures", None) or ()):
            return cls.auto_model  # without the tables below, which cost the import of torch
        import transformers

        autos = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
        return next((each for each in autos if type(config) in getattr(transformers, each)._model_mapping), autos[0])

    @classmethod
    def reads_for(cls, params: DecisionParams, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """A request where one is mapped, or there is no text; else text, and options where params name none."""
        there = {*schema.names, *mapped}
        if "request" in mapped or ("text" not in there and "request" in there):
            own = {name: info for name, info in cls.Params.model_fields.items() if name not in TextParams.model_fields}
            told = [name for name, info in own.items() if getattr(params, name) != info.default]
            if told:
                raise ValueError(f"params.{told[0]} says what a request says itself: leave it out, or read text")
            return pa.schema([cls.optional.field("request")])
        if params.kind == "yes_no" or params.options is not None:
            if "options" in mapped:
                raise ValueError("options are under params too, or kind is yes_no; take them away there or here")
            return cls.reads
        if mapped.get("options", "options") not in schema.names:
            raise ValueError(
                "there are no options: write them under params, options: [food, sport], "
                "or name a column that has a list of them for each row"
            )
        return pa.schema([*cls.reads, cls.optional.field("options")])

    def writes(self) -> pa.Schema:
        """The answer and the probabilities; of a request the pipeline's JSON."""
        if self.requests:
            return pa.schema([("result", pa.string()), ("truncated", pa.bool_())])
        score = [("expected", pa.float32())] if self.params.kind == "score" else []
        answer = [("answer", pa.string()), ("score", pa.float32()), ("probabilities", pa.list_(pa.float32()))]
        return pa.schema([*answer, *score, ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a prompt: a row's text has one, a request one for each question."""
        made, row, errors = list[tuple[Prompt, Words]](), list[int](), dict[int, RowError]()
        for number, own in enumerate(rows.to_pylist()):
            try:
                prompts = list(self._prompts(*self._asked(own)))
            except RowError as error:
                errors[number] = error
                continue
            made += prompts
            row += [number] * len(prompts)
        sequences = sequences_of(made, np.array(row, dtype=np.int64), self.front, self.tokens)
        return Sequences(sequences.row, sequences.columns, errors)

    def loaded(self, model: Any) -> None:
        """What all prompts begin with goes through the model."""
        several = sorted({len(prompt.ids): number for number, (prompt, _) in enumerate(self.probes)}.values())
        probes = [self.probes[number] for number in several]
        tries = sequences_of(probes, np.arange(len(several)), self.front, self.tokens)
        self._passes[model] = Prefill(model, self.front, self.tokens, tries)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """A score for each token of each option."""
        model = getattr(model, "_orig_mod", model)  # compiled, it would be made anew for every length
        return {"scores": self._passes[model](model, batch.sequences)}

    def way(self) -> str:
        """Nothing, unless something is not shared."""
        return "; ".join({made.reason for made in self._passes.values() if made.reason})

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores to probabilities, and the best of them."""
        truncated = pa.array(by_row(outputs.dense("truncated"), outputs.row, len(rows)))
        scores, option = outputs.ragged("scores"), outputs.ragged("option")
        summed: list[list[Array]] = [[] for _ in range(len(rows))]
        for number, row in enumerate(outputs.row):
            summed[row].append(np.bincount(option[number], weights=scores[number]))
        asked = [self._asked(own) for own in rows.to_pylist()]
        pairs = zip(asked, summed, strict=True)
        if self.requests:
            results = [json.dumps(self._result(questions, own), ensure_ascii=False) for (_, questions, _), own in pairs]
            return pa.Table.from_arrays([pa.array(results, pa.string()), truncated], schema=self.writes())
        made = [self._answer(questions[0], options, own[0]) for (_, questions, options), own in pairs]
        columns = [[row[name] for row in made] for name in self.writes().names[:-1]]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self.writes().types, strict=False)]
        return pa.Table.from_arrays([*arrays, truncated], schema=self.writes())

    def _asked(self, row: Mapping[str, Any]) -> tuple[Any, list[Question], list[str]]:
        """The state, its questions, and a text's options as they are written. RowError."""
        if not self.requests:
            options = self.options or checked(row["options"], self.params.kind == "score")
            return row["text"], [self.question or self._question(options)], options
        request = from_json("request", row["request"], dict)
        if request.get("assets"):
            raise RowError("bad_request", "it has assets: pictures are read by image-text-to-text")
        try:
            return request["state"], self.asker.questions(request["questions"]), []
        except KeyError as error:
            raise RowError("bad_request", f"it has no {error}") from error
        except ValueError as error:
            raise RowError("bad_request", str(error)) from error

    def _question(self, options: list[str]) -> Question:
        """What is asked of a text, in transformers' form. RowError."""
        about, kind = self.params.meanings, _TYPES[self.params.kind]
        criteria: Any = {option: about.get(option) for option in options}
        if kind == "noul":
            criteria = {YES_NO[option]: text for option, text in criteria.items()} if about else None
        elif kind == "score":
            criteria = [f"{option}: {text}" if text else option for option, text in criteria.items()]
        try:
            asked = {"type": kind, "instructions": self.params.question, "criteria": criteria}
            return self.asker.questions({"answer": asked}, any_number=self.spelled)[0]
        except ValueError as error:
            raise RowError("bad_options", str(error)) from error

    def _prompts(self, state: Any, questions: list[Question], options: list[str]) -> Iterator[tuple[Prompt, Words]]:
        """Each with the tokens of all its options. RowError."""
        if not self.spelled:
            for prompt in self.asker.prompts(state, questions):
                yield prompt, [[token] for question in prompt.questions for token in self._labels(question)]
            return
        words = questions[0].labels if questions[0].type == "noul" else options
        tokens = self.asker.tokens(words)
        for word, made in zip(words, tokens, strict=True):
            if not made:
                raise RowError("no_token", f"the option {word!r} has no token")
        behind = max(len(made) for made in tokens) - 1
        for prompt in self.asker.prompts(state, questions, behind):
            yield prompt, tokens

    def _labels(self, question: Question) -> list[int]:
        usable, wanted = self.labels[question.type], len(question.options)
        if len(usable) < wanted:
            raise RowError("no_token", f"{wanted} options, and the model has tokens for {len(usable)} labels")
        return usable[:wanted]

    def _probes(self) -> Iterator[tuple[Any, list[Question], list[str]]]:
        """States and questions that differ in all that rows may differ in."""
        for number, text in enumerate(_BEGINNINGS):
            asked = [{"type": "choice", "criteria": {text: "b"}}, {"type": "score", "criteria": ["a", text]}][
                number % 2
            ]
            request = json.dumps({"state": text, "questions": {"a": asked}})
            options = [["1", "2"], ["7", "8", "9"]][number % 2]
            yield self._asked({"text": text, "options": options, "request": request})

    def max_bytes_per_row(self) -> int:
        """A number an option, and the answer."""
        return 16384 if self.options is None else 512 + sum(len(each.encode()) + 8 for each in self.options)

    def _result(self, questions: list[Question], scores: list[Array]) -> dict[str, Any]:
        """The pipeline's answers."""
        ends = np.cumsum([len(question.options) for question in questions])
        parts = np.split(np.concatenate(scores), ends[:-1])
        return {q.name: q.answer(self._chances(q, part).tolist()) for q, part in zip(questions, parts, strict=True)}

    def _answer(self, question: Question, options: list[str], scores: Array) -> dict[str, Any]:
        """The columns of a row."""
        chances = self._chances(question, scores)
        if question.type == "noul":
            chances = chances[[question.options.index(YES_NO[option]) for option in options]]
        best = int(chances.argmax())
        made = {"answer": options[best], "score": chances[best], "probabilities": chances}
        if question.type == "score":
            made["expected"] = float(chances @ np.array(options, dtype=np.float64))
        return made

    def _chances(self, question: Question, scores: Array) -> Array:
        """Softmax, at the checkpoint's temperature for such questions."""
        scores = scores / float(self.decision.temperature.get(question.type, 1.0))
        grown = np.exp(scores - scores.max())
        return np.asarray(grown / grown.sum(), dtype=np.float32)
