"""Encoded images to model inputs: what all image tasks share. Every image is made alone, as transformers makes it.

Nothing is padded to the size of a neighbour: images whose inputs have one shape share a batch, others do not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from hfbatch.errors import RowError
from hfbatch.sequences import Array, Column, Ragged, Sequences
from hfbatch.tasks.room import Room

if TYPE_CHECKING:
    from PIL.Image import Image
else:
    Image = Any

T = TypeVar("T")

# What image processors make; a task writes it into its `inputs`.
IMAGE_INPUTS = ("pixel_values", "pixel_mask", "pixel_attention_mask", "spatial_shapes")
MOST_PIXELS = 178_956_970  # of an image, as it is stored or resized: where Pillow refuses too
_ROOM = 64_000_000  # pixels that are made at once, at some 45 bytes each; a larger image is made alone
_THREADS = 8
_PATCH = 16 * 16  # pixels that cost as much as a token
_room = Room(_ROOM)


def image_sequences(processor: Any, files: pa.ChunkedArray, inputs: Iterable[str] = IMAGE_INPUTS) -> Sequences:
    """One sequence an image: the `inputs` that an image processor makes of it, `length`, and `size`.

    `size` (sequences, 2) int32 is the height and width of the upright image; `length` its cost in tokens.
    """

    def made(image: Image, row: int) -> tuple[dict[str, Array], tuple[int, int]]:
        check_resized(processor, image)
        return tensors(processor(images=[image], return_tensors="pt"), inputs), (image.height, image.width)

    done, errors = each_image(files, made)
    columns = shaped([features for features, _ in done.values()])
    if done:
        columns["length"] = patches(features["pixel_values"] for features, _ in done.values())
        columns["size"] = np.array([size for _, size in done.values()], dtype=np.int32)
    return Sequences(np.array(list(done), dtype=np.int64), columns, errors)


def each_image(
    files: pa.ChunkedArray | pa.Array, work: Callable[[Image, int], T]
) -> tuple[dict[int, T], dict[int, RowError]]:
    """`work(image, row)` for each file, in threads: results by row, in order; and errors by row.

    `image` is upright RGB. At most a few images are decoded at a time. Whatever `work` raises is that row's error.
    """
    silence()
    rows: dict[int, T] = {}
    errors: dict[int, RowError] = {}

    def attempt(row: int) -> T | RowError:
        try:
            header = _opened(files[row].as_py())
            with _room.take(header.width * header.height):
                return work(_upright(header), row)
        except RowError as error:
            return error
        except Exception as error:  # a processor's own refusal: too narrow, a mode that it cannot read
            return RowError("preprocess_failed", _line(error))

    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="hfbatch-image") as pool:
        for row, result in enumerate(pool.map(attempt, range(len(files)))):
            if isinstance(result, RowError):
                errors[row] = result
            else:
                rows[row] = result
    return rows, errors


def decode(file: bytes) -> Image:
    """The image in `file`: its first frame, upright, RGB, as transformers' load_image gives it. Else RowError."""
    return _upright(_opened(file))


def tensors(features: Mapping[str, Any], inputs: Iterable[str] | None = None) -> dict[str, Array]:
    """What a processor made for one image (a batch of one), without the axis of the batch: floats as float32.

    `inputs`: only those; None: all.
    """
    arrays = {name: np.asarray(features[name]) for name in (features if inputs is None else inputs) if name in features}
    return {
        name: array[0].astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64, copy=False)
        for name, array in arrays.items()
    }


def shaped(features: Sequence[Mapping[str, Array]]) -> dict[str, Column]:
    """Arrays of any shapes, one mapping a sequence with the same names in each, as columns `x` and `x.shape`."""
    columns: dict[str, Column] = {}
    for name in features[0] if features else ():
        arrays = [entry[name] for entry in features]
        columns[name] = Ragged.from_arrays(arrays, arrays[0].dtype)
        columns[name + ".shape"] = np.array([array.shape for array in arrays], dtype=np.int64)
    return columns


def patches(pixels: Iterable[Array]) -> Array:
    """(images,) int64: what arrays (channels, height, width) cost in tokens, at 16 x 16 pixels each; at least 1."""
    return np.array([max(1, array.size // (3 * _PATCH)) for array in pixels], dtype=np.int64)


def check_resized(processor: Any, image: Image) -> None:
    """RowError where a processor that keeps the aspect ratio would blow a narrow image up beyond MOST_PIXELS."""
    size = getattr(processor, "size", None)
    edges = ("shortest_edge", "longest_edge")
    short, long = (size.get(name) if isinstance(size, Mapping) else getattr(size, name, None) for name in edges)
    ratio = max(image.size) / min(image.size)
    if short and not long and short * short * ratio > MOST_PIXELS:
        raise RowError("bad_image", f"{image.width} x {image.height} pixels: too narrow for a short side of {short}")


def silence() -> None:
    """Pillow's warnings (a large image, odd EXIF data) are about one row of many; its refusals stay.

    Not while threads decode.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _opened(file: bytes) -> Image:
    """The image with its header read. RowError for what is none, or too large."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        image = pillow.open(BytesIO(file), formats=_formats())
    except pillow.DecompressionBombError as error:
        raise RowError("image_too_large", f"a file of {len(file):,} bytes: {_line(error)}") from error
    except UnidentifiedImageError as error:
        raise RowError("bad_image", f"no image format begins with {file[:16]!r}") from error
    except Exception as error:  # decoders raise whatever they meet
        raise RowError("bad_image", _line(error)) from error
    if image.width * image.height > MOST_PIXELS:
        raise RowError("image_too_large", f"{image.width} x {image.height} pixels, the limit is {MOST_PIXELS:,}")
    return image


def _upright(image: Image) -> Image:
    """Decoded, turned as EXIF says, RGB."""
    from PIL import ImageOps

    try:
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # as above: OSError, SyntaxError, struct.error, ...
        raise RowError(
            "bad_image", f"{image.format} of {image.width} x {image.height} pixels: {_line(error)}"
        ) from error


@cache
def _formats() -> list[str]:
    """All that Pillow reads but EPS, which it would hand to another program to run."""
    from PIL import Image as pillow

    pillow.preinit()  # the usual formats first
    pillow.init()
    return [name for name in pillow.ID if name != "EPS"]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
