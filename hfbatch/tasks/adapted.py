"""The tasks of transformers' `pipeline()` that have no file of their own: its own pipeline object, row by row.

Each class says what a row gives the pipeline (`request`), and which parts of its answer are files of their own
(`split`); `result` is the rest as JSON. There is nothing to gain from batches here: a pipeline takes one row at a time.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field

from hfbatch.errors import RowError
from hfbatch.kinds import AUDIO, IMAGE, VIDEO
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.audio import each_sound
from hfbatch.tasks.base import KEY, Batch, Flat, Outputs, Params, Task
from hfbatch.tasks.images import each_image

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_PLAYLIST = RowError("bad_video", "a playlist, which would open files of the worker; store the video itself")

Files: TypeAlias = dict[str, bytes | list[bytes]]


class Adapted(Task):
    """A task whose forward is transformers' pipeline of the same name; values are that pipeline's, to the last bit."""

    adapted = True
    autos: ClassVar[tuple[str, ...]]  # Auto classes, the first that knows the checkpoint's type is taken
    parts: ClassVar[tuple[str, ...]] = ()  # of the checkpoint, given to the pipeline where they are there
    files: ClassVar[pa.Schema] = pa.schema([])  # columns of bytes beside `result`
    inputs = ()
    host = (KEY, "request", "image", "image.shape", "other", "other.shape", "sound", "film")
    streams = True
    keyed = True
    batch_tokens = (1, 1)

    def __init__(self, params: Any, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        for package, install in self.packages().items():
            if find_spec(package) is None:
                raise ValueError(f"transformers' {self.name} pipeline needs {package}: {install}")

    def packages(self) -> Mapping[str, str]:
        """Modules that the pipeline needs beside Pillow or soundfile, and how to get them."""
        return {}

    @classmethod
    def auto_class(cls, config: Any) -> str:
        """The first Auto class that knows models of this type."""
        import transformers

        known = (name for name in cls.autos if type(config) in getattr(transformers, name)._model_mapping)
        return next(known, cls.autos[0])

    def writes(self) -> pa.Schema:
        """result, and the files of this task."""
        return pa.schema([("result", pa.string()), *self.files])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a row: its columns as JSON, its media decoded."""
        errors: dict[int, RowError] = {}
        media = _decoded(rows, self.given, self._rate(), errors)
        texts = rows.select([name for name in rows.column_names if name not in (*media, KEY)]).to_pylist()
        requests = []
        for row, text in enumerate(texts or [{}] * len(rows)):
            try:
                requests.append(json.dumps(self.checked(text)).encode() if row not in errors else b"")
            except RowError as error:
                errors[row] = error
                requests.append(b"")
        keep = np.array([row for row in range(len(rows)) if row not in errors], dtype=np.int64)
        columns: dict[str, Column] = {"request": _bytes([requests[row] for row in keep])}
        columns[KEY] = rows[KEY].to_numpy()[keep]
        for slot, (name, values) in zip(_slots(self.given), media.items(), strict=True):
            arrays = [values[row] for row in keep]
            columns[slot] = Ragged.from_arrays(arrays, arrays[0].dtype if arrays else np.uint8)
            if self.given.field(name).type == IMAGE:
                columns[slot + ".shape"] = np.array([array.shape for array in arrays], dtype=np.int64).reshape(-1, 3)
        return Sequences(keep, columns, errors)

    def _rate(self) -> int:
        return int(self.checkpoint.feature_extractor.sampling_rate) if AUDIO in self.given.types else 0

    def checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns of a row that are no media, read where they hold JSON. RowError for what the task refuses."""
        return row

    def loaded(self, model: Any) -> None:
        """Build transformers' pipeline around the model."""
        from transformers import pipeline

        parts = {name: part for name in self.parts if (part := self._part(name)) is not None}
        self.pipeline = pipeline(self.name, model=model, device=model.device, **parts)

    def _part(self, name: str) -> Any:
        try:
            return getattr(self.checkpoint, name)
        except ValueError:  # this model has none, and needs none
            return None

    def settings(self) -> dict[str, Any]:
        """The params that are set, for the pipeline's call."""
        return {name: value for name, value in self.params if value is not None}

    @abstractmethod
    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """What the pipeline is called with: the columns `checked` gave, and the row's images, sounds and films."""

    def split(self, answer: Any) -> tuple[Any, Files]:
        """The pipeline's answer without what becomes a column of `files`, and that."""
        return answer, {}

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Answer: JSON {result, files}, as bytes."""
        import torch

        answers = [np.frombuffer(self._answer(batch.sequences, index), np.uint8) for index in range(len(batch.lengths))]
        lengths = np.array([len(answer) for answer in answers], dtype=np.int64)
        return {"answer": Flat(torch.from_numpy(np.concatenate(answers)), lengths)}

    def _answer(self, sequences: Sequences, index: int) -> bytes:
        row = json.loads(sequences.ragged("request")[index].tobytes())
        media = [_medium(sequences, slot, index) for slot in _slots(self.given)]
        with _drawn_from(int(sequences.dense(KEY)[index])):
            answer = self.pipeline(self.request(row, media), **self.settings())
        result, files = self.split(answer)
        coded = {name: _coded(content) for name, content in files.items()}
        try:
            return json.dumps({"result": result, "files": coded}, default=_plain, allow_nan=False).encode()
        except ValueError as error:
            raise RowError("non_finite", "the pipeline's answer has NaN or infinite values") from error

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """JSON and files."""
        answers = outputs.ragged("answer")
        made = [json.loads(answers[index].tobytes()) for index in range(len(answers))]
        columns = [pa.array([json.dumps(each["result"], ensure_ascii=False) for each in made], pa.string())]
        for entry in self.files:
            columns.append(pa.array([_uncoded(each["files"][entry.name]) for each in made], entry.type))
        return pa.Table.from_arrays(columns, schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """Files are about as large as pictures are."""
        return 1 << 20 if len(self.files) else 1 << 14


class LabelParams(Params):
    """Labels to choose from, where no column `candidate_labels` gives them."""

    candidate_labels: list[str] | None = Field(
        default=None,
        min_length=1,
        examples=[["cat", "dog"]],
        description="labels to choose from; null: the column candidate_labels has them",
    )


class Labelled(Adapted):
    """A task with candidate labels, as a param or as a column."""

    @classmethod
    def reads_for(cls, params: Any, mapped: Mapping[str, str], schema: pa.Schema) -> pa.Schema:
        """The labels are read where the params do not give them."""
        if params.candidate_labels is not None and "candidate_labels" in mapped:
            raise ValueError("candidate_labels stand in params and in input.columns: leave one of them out")
        return cls.reads if params.candidate_labels is not None else pa.schema([*cls.reads, *cls.optional])

    def labels(self, row: dict[str, Any]) -> list[str]:
        """The labels of a row."""
        return list(self.params.candidate_labels or row["candidate_labels"])

    def checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row without labels, or with a null among them, is refused."""
        found = row.get("candidate_labels", True)
        if not found or (found is not True and None in found):
            raise RowError("no_labels", "candidate_labels is empty or has a null in it")
        return row

    def settings(self) -> dict[str, Any]:
        """All but the labels."""
        return {name: value for name, value in super().settings().items() if name != "candidate_labels"}


def png(image: Any) -> bytes:
    """A picture, or an array of bytes or booleans (height, width), as a PNG file."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        image = Image.fromarray(array.astype(np.uint8) * (255 if array.dtype == bool else 1), mode="L")
    into = BytesIO()
    image.save(into, "PNG")
    return into.getvalue()


def npy(array: Any) -> bytes:
    """An array as numpy.save writes it, floats as float32."""
    into = BytesIO()
    np.save(into, np.asarray(array, dtype=np.float32), allow_pickle=False)
    return into.getvalue()


def from_json(name: str, text: str, kind: type | tuple[type, ...]) -> Any:
    """The JSON in column `name`. RowError where it is none, or not of `kind`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError("bad_json", f"{name}: {error}") from error
    if not isinstance(value, kind):
        raise RowError("bad_json", f"{name} holds a {type(value).__name__}")
    return value


def _decoded(
    rows: pa.Table, given: pa.Schema, rate: int, errors: dict[int, RowError]
) -> dict[str, Mapping[int, Array]]:
    """For each media input the arrays by row; rows that have none go into `errors`."""
    made: dict[str, Mapping[int, Array]] = {}
    for entry in given:
        if entry.type == IMAGE:
            made[entry.name], failed = each_image(rows[entry.name], lambda image, row: np.asarray(image))
        elif entry.type == AUDIO:
            made[entry.name], failed = each_sound(rows[entry.name], rate, lambda samples: samples)
        elif entry.type == VIDEO:
            films = dict(enumerate(rows[entry.name].to_pylist()))
            made[entry.name] = {row: np.frombuffer(film, np.uint8) for row, film in films.items()}
            failed = {row: _PLAYLIST for row, film in films.items() if film.startswith(b"ffconcat")}
        else:
            continue
        errors |= {row: error for row, error in failed.items() if row not in errors}
    return made


def _slots(given: pa.Schema) -> list[str]:
    """Names of columns of Sequences, one a media input, in order; see `Adapted.host`."""
    kinds = [kind for kind in given.types if kind in (IMAGE, AUDIO, VIDEO)]
    names = {IMAGE: ["image", "other"], AUDIO: ["sound"], VIDEO: ["film"]}
    return [names[kind][kinds[:index].count(kind)] for index, kind in enumerate(kinds)]


def _medium(sequences: Sequences, slot: str, index: int) -> Any:
    values = sequences.ragged(slot)[index]
    if slot not in ("image", "other"):
        return values
    from PIL import Image

    return Image.fromarray(values.reshape(sequences.dense(slot + ".shape")[index]))


@contextmanager
def _drawn_from(key: int) -> Iterator[None]:
    """What a pipeline draws, such as the part of a long sound that it listens to, depends on the row alone.

    What others draw in this process does not depend on it: their generators go on as if nothing had been.
    """
    import torch

    state = np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        np.random.seed(key % 2**32)  # the generator that transformers draws from
        torch.manual_seed(key)
        try:
            yield
        finally:
            np.random.set_state(state)


def _bytes(texts: list[bytes]) -> Ragged:
    return Ragged.from_arrays([np.frombuffer(text, np.uint8) for text in texts], np.uint8)


def _coded(content: bytes | list[bytes]) -> str | list[str]:
    return [b64encode(each).decode() for each in content] if isinstance(content, list) else b64encode(content).decode()


def _uncoded(text: str | list[str]) -> bytes | list[bytes]:
    return [b64decode(each) for each in text] if isinstance(text, list) else b64decode(text)


def _plain(value: Any) -> Any:
    """Tensors, arrays and their scalars as JSON's lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON")
