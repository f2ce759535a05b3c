"""Sounds to model inputs, and samples to WAV: what all audio tasks share.

A file (WAV, FLAC, OGG, MP3) or samples become one channel at the model's rate. Each sound is made alone, as
transformers makes it, and whoever would hear the silence behind it is never padded.
"""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from hfbatch.errors import RowError
from hfbatch.sequences import SHAPE, Array, Column
from hfbatch.tasks.images import shaped, tensors
from hfbatch.tasks.room import Room

T = TypeVar("T")

AUDIO_INPUTS = ("input_values", "input_features", "attention_mask")  # what feature extractors make
BATCH_TOKENS = (4_000, 32_000)  # in 20 ms of sound; convolutions over raw sound take about 15 MB a second of it
MOST_SAMPLES = 1 << 29  # of one sound, after mixing: 2 GiB
RATES = range(1_000, 1_000_001)  # Hz
_LOUDEST = 1 << 31  # whole numbers of 32 bits; from far larger ones extractors make infinities
_ROOM = 1 << 27  # samples in hand at once, at up to 12 bytes each; a longer sound is made alone
_BLOCK = 1 << 20  # samples decoded at once: a file of a few bytes may unpack to days of silence
_THREADS = 4
_UNKNOWN = 0x7FFFF000  # sizes from here on stand for "unknown" in WAV files that were written to a pipe
_CHUNKED = {b"RIFFWAVE": "<", b"RF64WAVE": "<", b"RIFXWAVE": ">", b"FORMAIFF": ">"}  # the order of bytes in sizes
_room = Room(_ROOM)


def require_packages() -> None:
    """ValueError where the packages that read sound are not installed; for a task's constructor."""
    missing = [name for name in ("soundfile", "soxr") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"sound is read with {' and '.join(missing)}, not installed here: pip install 'hfbatch[audio]'"
        )


def each_sound(
    column: pa.ChunkedArray | pa.Array, rate: int, work: Callable[[Array], T]
) -> tuple[dict[int, T], dict[int, RowError]]:
    """`work(samples)` for each row of a kinds.AUDIO column, in threads: results by row, in order; and errors by row.

    `samples` (n,) float32 at `rate` Hz, n > 0. Whatever `work` raises is that row's error.
    """
    struct_array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    files, arrays, rates = struct_array.flatten()
    rows: dict[int, T] = {}
    errors: dict[int, RowError] = {}

    def attempt(row: int) -> T | RowError:
        try:
            with ExitStack() as held:
                if files[row].is_valid:
                    samples, own = decode(files[row].as_py(), held)
                else:
                    held.enter_context(_room.take(len(arrays[row].values)))
                    samples, own = _given(arrays[row], rates[row].as_py())
                return work(resampled(samples, own, rate))
        except RowError as error:
            return error
        except Exception as error:  # a feature extractor's own refusal
            return RowError("preprocess_failed", _line(error))

    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="hfbatch-sound") as pool:
        for row, result in enumerate(pool.map(attempt, range(len(struct_array)))):
            if isinstance(result, RowError):
                errors[row] = result
            else:
                rows[row] = result
    return rows, errors


def decode(file: bytes, held: ExitStack | None = None) -> tuple[Array, int]:
    """(n,) float32 samples of the sound in `file`, the mean of its channels, and their rate. Else RowError.

    `held` holds the room that they take, for as long as the caller needs them.
    """
    import soundfile

    _refuse_cut(file)
    blocks, total = [], 0
    try:
        with soundfile.SoundFile(BytesIO(file)) as sound:
            own, told = int(sound.samplerate), int(sound.frames)
            if held is not None:
                held.enter_context(_room.take(min(told, MOST_SAMPLES)))
            while len(block := sound.read(_BLOCK // sound.channels, dtype="float32", always_2d=True)):
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
                total += len(block)
                if total > MOST_SAMPLES:
                    raise RowError("too_long", f"over {MOST_SAMPLES:,} samples, which is {MOST_SAMPLES // own:,} s")
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".")
        raise RowError(
            "bad_audio", f"{reason} (a file of {len(file):,} bytes that begins with {file[:8]!r})"
        ) from error
    if total < told < _UNKNOWN:
        raise RowError("bad_audio", f"truncated: {total:,} of {told:,} samples")
    return _checked(np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32), own), own


def resampled(samples: Array, own: int, rate: int) -> Array:
    """`samples` of `own` Hz at `rate` Hz. RowError where that leaves none."""
    if own != rate:
        import soxr

        samples = soxr.resample(samples, own, rate, quality="HQ")
    if not len(samples):
        raise RowError("empty_input", "the sound has no samples")
    return samples


def extract(extractor: Any, samples: Array, **options: Any) -> dict[str, Array]:
    """The model inputs that a feature extractor makes of one sound: AUDIO_INPUTS, without the axis of the batch.

    Raw sound needs no mask: a batch of equal lengths has no padding, and one of others gets its own.
    """
    made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np", **options)
    arrays = tensors(made, AUDIO_INPUTS)
    if "input_features" not in arrays:
        arrays.pop("attention_mask", None)
    return arrays


def sound_columns(features: Sequence[Mapping[str, Array]], config: Any) -> dict[str, Column]:
    """What `extract` made of each sequence as columns of Sequences, with `length`, its cost in 20 ms of sound."""
    columns = shaped(features)
    if "input_values" in columns and may_pad(config):
        del columns["input_values" + SHAPE]
    if features:
        main = next(name for name in AUDIO_INPUTS if name in columns)
        sizes = [entry[main].shape for entry in features]
        costs = [max(size) // 2 if len(size) > 1 else size[0] // 320 for size in sizes]
        columns["length"] = np.maximum(np.array(costs, dtype=np.int64), 1)
    return columns


def may_pad(config: Any) -> bool:
    """Whether a model of raw sound gives the same for a padded batch with its attention mask.

    Those with feat_extract_norm "group" normalise over all of the time axis, padding too.
    """
    return config.model_type in ("wav2vec2", "hubert") and config.feat_extract_norm == "layer"


def shortest(config: Any) -> int:
    """The fewest samples of which a model of raw sound makes one frame; 1 where its config has no convolutions."""
    samples = 1
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in reversed(list(zip(kernels or (), strides or (), strict=False))):
        samples = (samples - 1) * stride + kernel
    return samples


def refuse_short(samples: Array, least: int, rate: int) -> None:
    """RowError where a sound is too short for a single frame of the model."""
    if len(samples) < least:
        raise RowError("too_short", f"{len(samples)} samples at {rate} Hz; the model hears no less than {least}")


def wav(samples: Array, rate: int) -> bytes:
    """(n,) float samples in [-1, 1] as a WAV file of 16 bits: half of float's size, within 3e-5, and read by all."""
    into = BytesIO()
    with wave.open(into, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes())
    return into.getvalue()


def _given(array: pa.ListScalar, rate: int | None) -> tuple[Array, int]:
    """The samples and the rate of a row that holds them. RowError where there is no rate."""
    if rate is None:
        raise RowError("bad_audio", "samples without a sampling_rate")
    samples = np.asarray(array.values.to_numpy(zero_copy_only=False), dtype=np.float32)
    if len(samples) > MOST_SAMPLES:
        raise RowError("too_long", f"{len(samples):,} samples, the limit is {MOST_SAMPLES:,}")
    return _checked(samples, rate), rate


def _checked(samples: Array, rate: int) -> Array:
    if rate not in RATES:
        raise RowError("bad_audio", f"a sampling rate of {rate:,} Hz; it must lie in {RATES[0]:,} to {RATES[-1]:,}")
    if len(samples) and not (samples.min() >= -_LOUDEST and samples.max() <= _LOUDEST):  # NaN is neither
        raise RowError("bad_audio", f"samples that are null, NaN or infinite, or beyond {_LOUDEST:,}")
    return samples


def _refuse_cut(file: bytes) -> None:
    """RowError where a WAV or AIFF file ends before its samples do: libsndfile would read a shorter sound."""
    order = _CHUNKED.get(file[:4] + file[8:12], "")
    place, large = 12, 0
    while order and place + 8 <= len(file):
        kind, size = struct.unpack_from(f"{order}4sI", file, place)
        place += 8
        if kind == b"ds64" and place + 16 <= len(file):  # of RF64: sizes that do not fit the places they stand in
            (large,) = struct.unpack_from("<Q", file, place + 8)
        if kind in (b"data", b"SSND"):
            size = large or size
            if 0 < size < _UNKNOWN and place + size > len(file):
                raise RowError("bad_audio", f"truncated: {len(file) - place:,} of {size:,} bytes of samples")
            return
        place += size + size % 2


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
