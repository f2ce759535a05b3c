"""Questions with options to prompts: token ids, and where in them the model's next token tells the answer.

A request is what transformers' decision pipeline takes, a `state` and named `questions`; prompts, labels and settings
are that pipeline's, those of the checkpoint's decision.json and decision_template.jinja where it has them. What a row
holds stays text, whatever it spells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, NamedTuple

from hfbatch.errors import RowError
from hfbatch.tasks.chat import Prompts

_LONG = 64  # characters a token, as in text.py: what is longer than twice that is cut before it is tokenised

Question = Any  # transformers.decision.Question


class Prompt(NamedTuple):
    """One pass of the model."""

    ids: list[int]
    ends: list[int]  # of each question the number of tokens in front of its answer
    questions: list[Question]
    truncated: bool  # the state was cut


@dataclass(frozen=True)
class Style:
    """What the generic prompt may be told; a checkpoint with a decision template has its own."""

    system: str | None = None  # the system's message
    question_first: bool = False  # question and options before the state, which then ends the prompt
    spelled: bool = False  # the model is to write the option itself, not its label


@dataclass(frozen=True)
class Limit:
    """How long a prompt may be."""

    tokens: int | None  # None: any
    cuts: bool  # whether the end of the state gives way; else the row is an error


class Asker:
    """Makes prompts for one tokenizer. ValueError where its template has no place for what `style` says."""

    def __init__(self, tokenizer: Any, config: Any, style: Style, limit: Limit) -> None:
        """`tokenizer`: one's own, as it learns two tokens. `config`: transformers' DecisionConfig."""
        from tokenizers import AddedToken
        from transformers.decision.template_utils import MARK, SPLIT
        from transformers.utils.chat_template_utils import _get_template_variables

        self.tokenizer, self.config, self.style, self.limit = tokenizer, config, style, limit
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in (MARK, SPLIT)])
        self._sentinels = {text: tokenizer.convert_tokens_to_ids(text) for text in (MARK, SPLIT)}
        self._mark, self._plain = self._sentinels[MARK], Prompts(tokenizer)
        self._variables = _get_template_variables(config.chat_template) if config.chat_template else frozenset({""})
        self._chats = tokenizer.chat_template is not None
        if config.chat_template is not None and style != Style():
            raise ValueError("its decision_template.jinja says how it is asked: leave system, question_first, compare")
        if style.system is not None and self._chats and self._rendered("a") == self._rendered("a", system=None):
            raise ValueError("params.system: its chat template leaves it out; say it in params.question")

    def questions(self, asked: Mapping[str, Any], any_number: bool = False) -> list[Question]:
        """The questions of a request, as transformers reads them. ValueError names each that is wrong.

        `any_number`: of options, more than there are labels.
        """
        from transformers.decision import DecisionConfig, parse_questions

        config = self.config
        if not config.sanitize_control_tokens:
            asked = self._without_sentinels(asked)
        if any_number:
            most = max(len(each["criteria"] or ()) for each in asked.values())
            config = DecisionConfig(labels=dict.fromkeys(("choice", "score"), [""] * most))
        found: list[Question] = parse_questions(asked, config)
        return found

    def tokens(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids of each word, or words, as they would follow a prompt."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        made: list[list[int]] = self.tokenizer(list(words), **options)["input_ids"]
        return made

    def prompts(self, state: Any, questions: Sequence[Question], behind: int = 0) -> Iterator[Prompt]:
        """One for each question; one for all where the decision template asks them together. RowError.

        `behind`: tokens that there is to be room for after the prompt.
        """
        together = "questions" in self._variables
        for group in [list(questions)] if together else [[question] for question in questions]:
            yield self._fitted(state, group, behind)

    def _fitted(self, state: Any, group: list[Question], behind: int) -> Prompt:
        """The prompt, with as much of the state as there is room for."""
        most, cut = None if self.limit.tokens is None else self.limit.tokens - behind, False
        if most is not None and self.limit.cuts and isinstance(state, str) and len(state) > 2 * _LONG * most:
            state, cut = state[: 2 * _LONG * most], True
        ids, ends = self._encoded(state, group)
        if most is None or len(ids) <= most:
            return Prompt(ids, ends, group, cut)
        if not self.limit.cuts or not isinstance(state, str):
            raise RowError("too_long", f"{len(ids)} tokens, the limit is {most}")
        while len(ids) > most and state:
            state = self._without_end(state, len(ids) - most)
            ids, ends = self._encoded(state, group)
        if len(ids) > most:
            raise RowError("too_long", f"{len(ids)} tokens of the question and its options, the limit is {most}")
        return Prompt(ids, ends, group, True)

    def _without_end(self, text: str, count: int) -> str:
        """`text` without its last `count` tokens, at least one character shorter."""
        options = {"add_special_tokens": False, "verbose": False}
        if not self.tokenizer.is_fast:
            tokens = len(self.tokenizer(text, **options)["input_ids"])
            return text[: len(text) - ceil(len(text) * min(1.0, count / max(tokens, 1)))]
        made = self.tokenizer(text, **options, return_offsets_mapping=True, split_special_tokens=True)
        spans = made["offset_mapping"]
        return text[: min(len(text) - 1, spans[-count][0])] if count < len(spans) else ""

    def _encoded(self, state: Any, group: list[Question]) -> tuple[list[int], list[int]]:
        """Token ids without the sentinels, and how many stand before each mark, or in all where there is none."""
        if not self.config.sanitize_control_tokens:  # then nothing else keeps them out of what a row holds
            state = self._without_sentinels(state)
        if self.config.chat_template is None and not self._chats:
            return self._bare(self._text(state, group[0]))
        options: dict[str, Any] = {"sanitize_control_tokens": self.config.sanitize_control_tokens}
        if self.config.chat_template is None:
            messages = self._messages(self._text(state, group[0]), self.style.system)
        else:
            told = {"state": state, "question": asdict(group[0]), "questions": [asdict(each) for each in group]}
            options |= {name: value for name, value in told.items() if name in self._variables}
            options["chat_template"] = self.config.chat_template
            messages = self._messages("", None)
        return self._read(self._applied(messages, tokenize=True, return_dict=False, **options))

    def _bare(self, text: str) -> tuple[list[int], list[int]]:
        """A plain prompt, for a model without chats."""
        front = "" if self.style.system is None else f"{self.style.system}\n\n"
        ids = self._plain.encode(self._plain.veil(f"{front}{text}\n\nAnswer:\n"), True)
        around = self.tokenizer("", verbose=False)["input_ids"]
        if around and ids[-1] == around[-1] and len(around) > 1:  # what ends a text would end the answer too
            ids = ids[:-1]
        return ids, [len(ids)]

    def _read(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        kept, ends = list[int](), list[int]()
        for token in ids:
            if token == self._mark:
                ends.append(len(kept))
            elif token not in self._sentinels.values():
                kept.append(token)
        return kept, ends or [len(kept)]

    def _applied(self, messages: list[dict[str, str]], **options: Any) -> Any:
        """What the chat template makes of `messages`. RowError."""
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, enable_thinking=False, **options
            )
        except Exception as error:  # a template may raise anything
            raise RowError("bad_request", f"the chat template refuses it: {str(error)[:200]}") from error

    def _rendered(self, text: str, **style: Any) -> str:
        """The chat as text. ValueError."""
        try:
            made: str = self._applied(self._messages(text, style.get("system", self.style.system)), tokenize=False)
        except RowError as error:
            raise ValueError(f"params.system: {error.message}; say it in params.question") from error
        return made

    def _messages(self, text: str, system: str | None) -> list[dict[str, str]]:
        front = [] if system is None else [{"role": "system", "content": system}]
        return [*front, {"role": "user", "content": text}]

    def _text(self, state: Any, question: Question) -> str:
        """The user's message: as transformers has it, unless `style` says otherwise."""
        state = "" if state is None else state if isinstance(state, str) else json.dumps(state, ensure_ascii=False)
        asked = _spelled(question) if self.style.spelled and question.type != "noul" else _labelled(question)
        return f"{asked}\n\n{state}" if self.style.question_first else f"{state}\n\n{asked}"

    def _without_sentinels(self, value: Any) -> Any:
        text = json.dumps(value, ensure_ascii=False)
        for sentinel in self._sentinels:
            text = text.replace(sentinel, "")
        return json.loads(text)


def _labelled(question: Question) -> str:
    """Question and options, to be answered by a label: what transformers writes behind the state."""
    from transformers.decision import DECISION_PROMPT
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text: str = _compile_jinja_template(DECISION_PROMPT).render(state="", question=question)
    return text.removeprefix("\n\n")


def _spelled(question: Question) -> str:
    """Question and options, to be answered in the words of one of them."""
    levels, abouts = question.type == "score", question.descriptions
    named = zip(question.options, abouts, strict=True)
    options = abouts if levels else [f"{option}: {about}" if about else option for option, about in named]
    lines = [question.instructions or "", "Options:", *(f"- {option}" for option in options)]
    return "\n".join([line for line in lines if line] + ["Answer with the option that fits best only."])
