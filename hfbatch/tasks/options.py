"""What may be asked, which options there are, and the tokens that stand for them: params and rows to sequences."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, field_validator, model_validator

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.asking import Prompt
from hfbatch.tasks.prefill import FRONT
from hfbatch.tasks.text import TextParams

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

Words: TypeAlias = list[list[int]]  # the tokens of each option of a prompt
YES_NO = {"yes": "true", "no": "false"}  # ours, and transformers' names for them


class DecisionParams(TextParams):
    """Settings of decision."""

    question: str | None = Field(
        default=None, examples=["What is the text about?"], description="what is asked about every text"
    )
    kind: Literal["choice", "score", "yes_no"] = Field(
        default="choice",
        description="choice: one of the options; score: of options that are numbers; yes_no: yes or no",
    )
    options: list[str | dict[str, str]] | None = Field(
        default=None,
        min_length=1,
        examples=[["food", "sport", "neither"]],
        description="what to choose from, each an option or {option: what it means}; null: a column of lists has them",
    )
    system: str | None = Field(default=None, description="the system's message; null: the chat template's own")
    question_first: bool = Field(
        default=False, description="question and options stand before the text, so that they are computed once"
    )
    compare: Literal["labels", "options"] | None = Field(
        default=None,
        description="the labels that stand for the options, or all tokens of each; null: labels, where the model can",
    )

    @field_validator("options", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """Numbers as they are written; from YAML all are texts already."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            if any(isinstance(each, bool) for each in value):
                raise ValueError("an option is true or false; write it in quotes, or kind: yes_no")
            return [str(each) if isinstance(each, int | float) else each for each in value]
        return value

    @field_validator("options")
    @classmethod
    def _with_one_name(cls, value: list[str | dict[str, str]] | None) -> list[str | dict[str, str]] | None:
        for number, option in enumerate(value or ()):
            if not isinstance(option, str) and len(option) != 1:
                raise ValueError(f"options[{number}] has {len(option)} names; write each option as an item of its own")
        return value

    @model_validator(mode="after")
    def _fit_the_kind(self) -> DecisionParams:
        if self.kind == "yes_no" and not {*self.meanings} <= {*YES_NO}:
            raise ValueError("options: kind yes_no has yes and no alone; leave them out, or write kind: choice")
        names = [each if isinstance(each, str) else next(iter(each)) for each in self.options or ("1",)]
        try:
            checked(names, self.kind == "score")
        except RowError as error:
            raise ValueError(error.message) from None
        return self

    @property
    def meanings(self) -> dict[str, str | None]:
        """The options, and what they mean where that is said."""
        pairs = ((each, None) if isinstance(each, str) else next(iter(each.items())) for each in self.options or ())
        return dict(pairs)


def decision_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's settings, transformers' defaults where it has none. ValueError where it is asked otherwise."""
    from transformers.utils import cached_file

    try:
        from transformers.decision import DecisionConfig
    except ImportError as error:
        raise ValueError("this transformers knows no decisions: pip install -U transformers") from error
    for name in ("decision_config.json", "judge_config.json"):
        if cached_file(checkpoint.folder, name, _raise_exceptions_for_missing_entries=False) is not None:
            raise ValueError(f"it has a decision head of its own ({name}), and this task compares tokens")
    config = DecisionConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    if config.adapter:
        raise ValueError(f"its decision.json names the adapter {config.adapter!r}: save the model merged with it")
    return config


def label_tokens(tokenizer: Any, config: Any) -> dict[str, list[int]]:
    """For each type of question the tokens of its labels, as far as each is one, and none is another's."""
    found = dict[str, list[int]]()
    for kind in ("noul", "choice", "score"):
        labels = config.labels.get(kind) or (["Yes", "No"] if kind == "noul" else list(string.ascii_uppercase))
        usable = found[kind] = list[int]()
        for ids in tokenizer(list(labels), add_special_tokens=False)["input_ids"]:
            if len(ids) != 1 or ids[0] in (tokenizer.unk_token_id, *usable):
                break
            usable.append(ids[0])
    return found


def checked(options: Sequence[str | None], numbers: bool) -> list[str]:
    """A row's own options. RowError where they are none to choose from."""
    if not options:
        raise RowError("empty_input", "options is an empty list")
    found = list[str]()
    for number, option in enumerate(options):
        if option is None:
            raise RowError("null_input", f"options[{number}] is null")
        if option in found:
            raise RowError("bad_options", f"options[{number}] is {option!r}, which is there already")
        if not option.strip():
            raise RowError("no_token", f"options[{number}] is {option!r}, which has no token")
        if numbers and not _is_number(option):
            raise RowError("bad_options", f"options[{number}] is {option!r}, which is no number")
        found.append(option)
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _branched(prompt: Prompt, words: list[list[int]], front: list[int]) -> dict[str, Any]:
    """A prompt behind the front, if it begins with it, and what its options add."""
    shared = len(front) if prompt.ids[: len(front)] == front and min(prompt.ends) > len(front) else 0
    made: dict[str, Any] = {FRONT: shared, "input_ids": prompt.ids[shared:], "at": [], "token": [], "option": []}
    made |= {"branch": [0] * len(made["input_ids"]), "place": list(range(len(made["input_ids"])))}
    # A template may set more marks than questions, for a head that reads them.
    asked = zip(prompt.questions, prompt.ends, strict=False)
    ends = [end - shared for question, end in asked for _ in question.options]
    for option, (end, word) in enumerate(zip(ends, words, strict=True)):
        places = [end - 1, *range(len(made["input_ids"]), len(made["input_ids"]) + len(word) - 1)]
        made["at"] += places
        made["token"] += word
        made["option"] += [option] * len(word)
        made["input_ids"] += word[:-1]
        made["branch"] += [option + 1] * (len(word) - 1)
        made["place"] += range(end, end + len(word) - 1)
    return made


def sequences_of(
    made: Sequence[tuple[Prompt, Words]], row: Array, front: list[int], tokens: list[int] | None
) -> Sequences:
    """What prefill.py reads. `tokens`, rising: the only ones there are; None: any, and options of several."""
    parts = [_branched(prompt, words, front) for prompt, words in made]
    names = ("input_ids", "at", "token", "option", *(("branch", "place") if tokens is None else ()))
    columns: dict[str, Column] = {n: Ragged.from_lists([part[n] for part in parts], np.int64) for n in names}
    if tokens is not None:
        flat = Ragged.from_lists([part["token"] for part in parts], np.int64)
        columns["token"] = Ragged(np.searchsorted(tokens, flat.values), flat.offsets)
    columns[FRONT] = np.array([part[FRONT] for part in parts], dtype=np.int64).reshape(-1, 1)
    columns["truncated"] = np.array([prompt.truncated for prompt, _ in made], dtype=bool)
    return Sequences(row, columns)
