"""The adapted tasks that answer or label: what each reads, takes and writes; adapted.py says how they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt, field_validator

from hfbatch.errors import RowError
from hfbatch.kinds import AUDIO, IMAGE, TEXT, TEXTS
from hfbatch.tasks.adapted import Adapted, Files, Labelled, LabelParams, from_json
from hfbatch.tasks.base import Params
from hfbatch.tasks.template import check_hypothesis


class ZeroShotAudioClassificationParams(LabelParams):
    """Settings of zero-shot-audio-classification."""

    hypothesis_template: str = Field(default="This is a sound of {}.", description="{} stands for a label")

    @field_validator("hypothesis_template")
    @classmethod
    def _with_a_place(cls, value: str) -> str:
        return check_hypothesis(value, "This is a sound of {}.")


class ZeroShotAudioClassification(Labelled):
    """zero-shot-audio-classification: which of some labels a sound fits.

    reads   audio             audio
            candidate_labels  list of texts, where params do not give them
    writes  result            JSON: a list of {label, score}, best first
    """

    name = "zero-shot-audio-classification"
    autos = ("AutoModel",)
    needs = parts = ("feature_extractor", "tokenizer")
    reads = pa.schema([("audio", AUDIO)])
    optional = pa.schema([("candidate_labels", TEXTS)])
    Params = ZeroShotAudioClassificationParams

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """The samples; the labels are an argument of the call."""
        self._row = row
        return media[0]

    def settings(self) -> dict[str, Any]:
        """The labels of the row in hand, too."""
        return {**super().settings(), "candidate_labels": self.labels(self._row)}


class DocumentQuestionAnsweringParams(Params):
    """Settings of document-question-answering; null: the pipeline's default."""

    top_k: PositiveInt = Field(default=1, description="how many answers, best first")
    doc_stride: PositiveInt | None = Field(default=None, description="tokens by which windows of words overlap")
    max_answer_len: PositiveInt | None = Field(default=None, description="most tokens of an answer")
    max_seq_len: PositiveInt | None = Field(default=None, description="most tokens of a window with its question")
    max_question_len: PositiveInt | None = Field(default=None, description="most tokens of a question")
    handle_impossible_answer: bool | None = Field(default=None, description="whether no answer may be the answer")
    lang: str | None = Field(default=None, description="language of tesseract's, where it reads the words")


class DocumentQuestionAnswering(Adapted):
    """document-question-answering: the words of a document's picture that answer a question.

    reads   image       image
            question    text
            word_boxes  text, optional: JSON, a list of [word, [x0, y0, x1, y1]] in thousandths of width and height;
                        without it tesseract reads the words
    writes  result      JSON: a list of {answer, score, start, end}, best first; start and end are numbers of words
    """

    name = "document-question-answering"
    autos = ("AutoModelForDocumentQuestionAnswering",)
    needs = ("tokenizer",)
    parts = ("tokenizer", "image_processor", "feature_extractor")
    reads = pa.schema([("image", IMAGE), ("question", TEXT)])
    optional = pa.schema([("word_boxes", TEXT)])
    Params = DocumentQuestionAnsweringParams

    def packages(self) -> Mapping[str, str]:
        """Tesseract, unless the words are given or the model reads pictures."""
        reads_words = self.config.model_type != "vision-encoder-decoder" and "word_boxes" not in self.given.names
        return {"pytesseract": "install it with tesseract, or map word_boxes to a column"} if reads_words else {}

    def checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """Words and boxes from JSON."""
        if "word_boxes" in row:
            return {**row, "word_boxes": from_json("word_boxes", row["word_boxes"], list)}
        return row

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """Image, question and words."""
        return {"image": media[0], **row}


class TableQuestionAnsweringParams(Params):
    """Settings of table-question-answering."""

    sequential: bool | None = Field(default=None, description="one question after another, for models trained so")
    truncation: Literal["drop_rows_to_fit", "do_not_truncate"] | None = Field(
        default=None, description="null: rows that do not fit are dropped where the model is a TAPAS"
    )


class TableQuestionAnswering(Adapted):
    """table-question-answering: the cells of a table that answer a question.

    reads   table   text: JSON, {column: [cells]} or a list of {column: cell}
            query   text
    writes  result  JSON: {answer, coordinates, cells, aggregator}, as far as the model gives them
    """

    name = "table-question-answering"
    autos = ("AutoModelForTableQuestionAnswering", "AutoModelForSeq2SeqLM")
    needs = parts = ("tokenizer",)
    reads = pa.schema([("table", TEXT), ("query", TEXT)])
    streams = False
    Params = TableQuestionAnsweringParams

    def packages(self) -> Mapping[str, str]:
        """For the table."""
        return {"pandas": "pip install pandas"}

    def checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """The table from JSON, all cells as text, which is how the models read them."""
        table = from_json("table", row["table"], (dict, list))
        records = table if isinstance(table, list) else _records(table)
        if not records or not all(isinstance(record, dict) for record in records):
            raise RowError("bad_json", "table has no rows")
        return {**row, "table": [{name: str(cell) for name, cell in record.items()} for record in records]}

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """Table and question."""
        return row


def _records(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns as rows. RowError where they are no lists of one length."""
    try:
        return [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    except (TypeError, ValueError) as error:
        raise RowError("bad_json", "table: its columns are no lists of one length") from error


class AnyToAnyParams(Params):
    """Settings of any-to-any."""

    max_new_tokens: PositiveInt | None = Field(default=None, description="most tokens to generate; null: the model's")
    generation_mode: Literal["text"] = Field(default="text", description="what is generated; text is what is written")


class AnyToAny(Adapted):
    """any-to-any: text from a chat with text, a picture or a sound, by a model that takes them all.

    reads   text    text: what the user says
            image   image, optional
            audio   audio, optional
    writes  result  JSON: {generated_text}
    """

    name = "any-to-any"
    autos = ("AutoModelForMultimodalLM",)
    needs = parts = ("processor",)
    reads = pa.schema([("text", TEXT)])
    optional = pa.schema([("image", IMAGE), ("audio", AUDIO)])
    Params = AnyToAnyParams

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """A chat of one message."""
        names = [entry.name for entry in self.given if entry.name in ("image", "audio")]
        content = [{"type": name, name: medium} for name, medium in zip(names, media, strict=True)]
        return [{"role": "user", "content": [*content, {"type": "text", "text": row["text"]}]}]

    def packages(self) -> Mapping[str, str]:
        """For pictures, even where none are given."""
        return {"torchvision": "install the build that goes with your torch, or take image-text-to-text"}

    def settings(self) -> dict[str, Any]:
        """Only the new text."""
        return {**super().settings(), "return_full_text": False}

    def split(self, answer: Any) -> tuple[Any, Files]:
        """The text alone: the chat is in the input."""
        return {"generated_text": answer[0]["generated_text"]}, {}
