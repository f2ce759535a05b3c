import io
import re
import struct
import threading

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from hfbatch.errors import RowError, SpecError
from hfbatch.kinds import AUDIO
from hfbatch.tasks import audio
from hfbatch.tasks.audio import decode, each_sound, resampled, wav
from hfbatch.tasks.room import Room
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case
from tests.zoo import audio as hearing
from tests.zoo import pictures


def encoded(samples, rate=16_000, kind="WAV", subtype="PCM_16") -> bytes:
    into = io.BytesIO()
    soundfile.write(into, samples, rate, format=kind, subtype=subtype)
    return into.getvalue()


def column(*rows) -> pa.Array:
    return pa.array([{"audio": row} if isinstance(row, bytes) else row for row in rows], AUDIO)


def error_of(row) -> str:
    done, errors = each_sound(column(row), 16_000, len)
    assert done == {}
    return str(errors[0])


@pytest.mark.parametrize(
    ("kind", "subtype", "within"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.2),
        ("MP3", "MPEG_LAYER_III", 0.2),
    ],
)
def test_the_formats_people_have_are_read(kind, subtype, within):
    samples = pictures.samples(4, 0.5)
    made, rate = decode(encoded(samples, kind=kind, subtype=subtype))
    assert (made.dtype, rate, made.shape) == (np.float32, 16_000, samples.shape)
    np.testing.assert_allclose(made, samples, atol=within)


def test_channels_are_mixed_to_their_mean():
    left, right = pictures.samples(1), pictures.samples(2)
    made, _ = decode(encoded(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(made, (left + right) / 2, atol=1e-6)


def test_a_rate_is_brought_to_the_models_own_without_moving_the_sound():
    at = np.arange(44_100) / 44_100
    made = resampled(np.sin(2 * np.pi * 440 * at).astype(np.float32), 44_100, 16_000)
    assert made.shape == (16_000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(made[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text", "bad_audio: Format not recognised \\(a file of 19 bytes that begins with b'this is '\\)"),
        ("truncated", "bad_audio: truncated: 7,978 of 16,000 bytes of samples"),
        ("header only", "bad_audio: "),
        ("no samples", "empty_input: the sound has no samples"),
        ("truncated flac", "bad_audio: "),
        ("picture", "bad_audio: Format not recognised"),
    ],
)
def test_what_is_no_whole_sound_is_an_error_that_says_why(name, says):
    assert re.match(says, error_of(pictures.broken_sounds()[name]))


def test_a_sound_cut_short_is_an_error_in_every_format_that_says_its_length():
    samples = pictures.samples(0, 1.0)
    for kind, subtype in (("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")):
        whole = encoded(samples, kind=kind, subtype=subtype)
        assert error_of(whole[: len(whole) // 2]).startswith("bad_audio: "), kind


@pytest.mark.parametrize(("kind", "endian"), [("RF64", "FILE"), ("WAV", "BIG")])
def test_the_other_kinds_of_wav_are_read_and_are_errors_when_cut_short(kind, endian):
    into = io.BytesIO()
    soundfile.write(into, pictures.samples(0, 1.0), 16_000, format=kind, subtype="PCM_16", endian=endian)
    assert len(decode(into.getvalue())[0]) == 16_000
    assert error_of(into.getvalue()[:-1000]) == "bad_audio: truncated: 31,000 of 32,000 bytes of samples"


def test_a_long_sound_has_the_room_for_itself_and_gives_it_back(monkeypatch):
    room = Room(20_000)
    monkeypatch.setattr(audio, "_room", room)
    long, short = ({"array": np.zeros(size, np.float32), "sampling_rate": 16_000} for size in (50_000, 8_000))
    rows = column(pictures.wav(1, 1.0), pictures.wav(2, 3.0), b"nothing", long, short, pictures.wav(3, 0.5))
    taken, lock = [], threading.Lock()

    def work(samples):
        with lock:
            taken.append((len(samples), room.taken))

    _, errors = each_sound(rows, 16_000, work)
    assert list(errors) == [2]
    assert sorted(size for size, _ in taken) == [8_000, 8_000, 16_000, 48_000, 50_000]
    assert all(in_hand == size if size > 20_000 else size <= in_hand <= 20_000 for size, in_hand in taken)
    assert room.taken == 0


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_does_not_know_its_length_and_is_read_whole(size):
    whole = pictures.wav(1)
    piped = whole[:40] + struct.pack("<I", size) + whole[44:]
    np.testing.assert_array_equal(decode(piped)[0], decode(whole)[0])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"array": [0.0] * 99}, "bad_audio: samples without a sampling_rate"),
        ({"array": [0.0] * 99, "sampling_rate": 0}, "bad_audio: a sampling rate of 0 Hz; it must lie in 1,000 to"),
        ({"array": [0.0] * 99, "sampling_rate": 10**9}, "bad_audio: a sampling rate of 1,000,000,000 Hz"),
        ({"array": [0.0, float("nan")], "sampling_rate": 16_000}, "bad_audio: samples that are null, NaN or infinite"),
        ({"array": [0.0, None], "sampling_rate": 16_000}, "bad_audio: samples that are null, NaN or infinite"),
        (
            {"array": [0.0, 1e30], "sampling_rate": 16_000},
            "bad_audio: samples that are null, NaN or infinite, or beyond",
        ),
        ({"array": [-1e10, 0.0], "sampling_rate": 16_000}, "bad_audio: samples that are null, NaN or infinite, or be"),
        ({"array": [], "sampling_rate": 8_000}, "empty_input: the sound has no samples"),
        (encoded(np.zeros(9, np.float32), rate=300), "bad_audio: a sampling rate of 300 Hz"),
        (encoded(np.array([0, np.inf], np.float32), subtype="FLOAT"), "bad_audio: samples that are null, NaN"),
    ],
)
def test_samples_and_rates_that_cannot_be_are_errors(row, says):
    assert error_of(row).startswith(says)


def test_a_small_file_may_not_unpack_to_days_of_silence(monkeypatch):
    bomb = encoded(np.zeros(3_000_000, np.float32), kind="FLAC")
    assert len(bomb) < 20_000
    monkeypatch.setattr(audio, "MOST_SAMPLES", 2_000_000)
    assert error_of(bomb) == "too_long: over 2,000,000 samples, which is 125 s"
    assert error_of({"array": np.zeros(2_000_001, np.float32), "sampling_rate": 16_000}).startswith("too_long: ")


def test_errors_stay_with_their_rows_and_results_keep_their_order():
    def work(samples):
        if len(samples) == 3_200:
            raise ValueError("too loud\nand more")
        if len(samples) == 4_800:
            raise RowError("too_short", "by far")
        return len(samples)

    rows = [pictures.wav(i, 0.1 * i) for i in range(1, 6)]
    done, errors = each_sound(column(*rows, b"junk"), 16_000, work)
    assert list(done.items()) == [(0, 1_600), (3, 6_400), (4, 8_000)]
    assert {row: str(error).split(" (")[0] for row, error in errors.items()} == {
        1: "preprocess_failed: ValueError: too loud",
        2: "too_short: by far",
        5: "bad_audio: Format not recognised",
    }


def test_a_slice_of_a_column_is_read_from_its_own_rows():
    whole = column(pictures.wav(1, 0.1), {"array": [0.5] * 7, "sampling_rate": 16_000}, pictures.wav(2, 0.2))
    assert each_sound(whole.slice(1), 16_000, len) == ({0: 7, 1: 3_200}, {})
    assert each_sound(pa.chunked_array([whole[:1], whole[2:]]), 16_000, len) == ({0: 1_600, 1: 3_200}, {})


def test_samples_survive_a_wav_file_and_what_is_too_loud_is_clipped():
    samples = np.append(pictures.samples(3), np.float32([1.0, -1.0, 1.5, -1.5]))
    made, rate = decode(wav(samples, 22_050))
    assert rate == 22_050
    np.testing.assert_allclose(made, np.clip(samples, -1, 1), atol=4e-5)
    assert soundfile.info(io.BytesIO(wav(samples, 22_050))).subtype == "PCM_16"


def test_a_job_tells_which_rows_hold_no_sound(tmp_path):
    model = hearing.wav2vec2(tmp_path / "model", "Wav2Vec2ForSequenceClassification")
    rows = {"audio": [pictures.wav(1), *pictures.broken_sounds().values(), pictures.wav(2)]}
    errors = run_inline(plan_of(Case("audio-classification", model, rows).job(tmp_path)))["error"].to_pylist()
    assert errors[0] is None
    assert errors[-1] is None
    assert {error.split(":")[0] for error in errors[1:-1]} == {"empty_input", "bad_audio"}


def test_without_its_packages_a_plan_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "find_spec", lambda name: None)
    for task, head in (
        ("audio-classification", "Wav2Vec2ForSequenceClassification"),
        ("automatic-speech-recognition", "Wav2Vec2ForCTC"),
    ):
        model = hearing.wav2vec2(tmp_path / head, head)
        with pytest.raises(SpecError, match=r"soundfile and soxr, not installed here: pip install 'hfbatch\[audio\]'"):
            plan_of(Case(task, model, {"audio": [pictures.wav()]}).job(tmp_path))
