import io
import json

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file
from transformers import pipeline

from hfbatch.errors import SpecError
from hfbatch.kinds import AUDIO
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import audio
from tests.zoo.pictures import wav

LENGTHS = (0.025, 0.3, 0.3, 0.51, 1.0, 1.7)  # seconds; the first is one frame, 400 samples
FILES = [wav(i, seconds) for i, seconds in enumerate(LENGTHS)] + [wav(9, 0.5) + b"trailing junk"]
SAMPLES = {"audio": AUDIO}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearing")
    return {
        "wav2vec2": audio.wav2vec2(folder / "wav2vec2", "Wav2Vec2ForSequenceClassification"),
        "masked": audio.wav2vec2(folder / "masked", "Wav2Vec2ForSequenceClassification", masked=True),
        "hubert": audio.wav2vec2(folder / "hubert", "HubertForSequenceClassification"),
        "ast": audio.ast(folder / "ast"),
    }


def read(file: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(file), dtype="float32")[0]


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("wav2vec2", {}),
        ("masked", {"top_k": None, "function_to_apply": "sigmoid"}),
        ("hubert", {"top_k": 2, "function_to_apply": "none"}),
        ("ast", {"top_k": 1}),
    ],
)
def test_values_equal_transformers_pipeline(zoo, tmp_path, model, params):
    output = check(Case("audio-classification", zoo[model], {"audio": FILES}, params), tmp_path)
    reference = pipeline("audio-classification", model=str(zoo[model]), device="cpu")
    expected = [reference(read(file), **{"top_k": 5, **params}) for file in FILES]
    if params.get("top_k") == 1:
        made = [[{"label": r["label"], "score": r["score"]}] for r in output.to_pylist()]
    else:
        made = output["labels"].to_pylist()
    assert_close(made, expected)
    assert len({str(row) for row in expected}) == len(FILES), "a model that always says the same tests nothing"


@pytest.mark.parametrize(
    ("kind", "single"), [("regression", True), ("multi_label_classification", False), (None, True)]
)
def test_the_default_function_is_that_of_transformers(tmp_path, kind, single):
    labels = {"id2label": {0: "loudness"}, "label2id": {"loudness": 0}} if single else {}
    model = audio.wav2vec2(tmp_path / "model", "Wav2Vec2ForSequenceClassification")
    config = model / "config.json"
    told = {**json.loads(config.read_text()), "problem_type": kind, **labels}
    if single:
        weights = load_file(model / "model.safetensors")
        weights |= {name: weights[name][:1] for name in ("classifier.weight", "classifier.bias")}
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    config.write_text(json.dumps(told))
    output = check(Case("audio-classification", model, {"audio": FILES[:3]}), tmp_path)
    reference = pipeline("audio-classification", model=str(model), device="cpu")
    assert_close(output["labels"].to_pylist(), [reference(read(file)) for file in FILES[:3]])


def test_samples_and_files_of_the_same_sound_give_the_same(zoo, tmp_path):
    rows = [{"audio": None, "array": read(file), "sampling_rate": 16_000} for file in FILES]
    arrays = check(Case("audio-classification", zoo["wav2vec2"], {"audio": rows}, types=SAMPLES), tmp_path)
    files = run_inline(plan_of(Case("audio-classification", zoo["wav2vec2"], {"audio": FILES}).job(tmp_path)))
    assert_close(arrays["labels"].to_pylist(), files["labels"].to_pylist())


def test_a_sound_shorter_than_a_frame_is_an_error_of_its_row(zoo, tmp_path):
    files = [wav(0, 0.3), wav(1, 399 / 16_000), wav(2, 0.3)]
    for model in ("wav2vec2", "hubert"):
        case = Case("audio-classification", zoo[model], {"audio": files})
        errors = run_inline(plan_of(case.job(tmp_path)))["error"].to_pylist()
        assert errors[::2] == [None, None]
        assert errors[1] == "too_short: 399 samples at 16000 Hz; the model hears no less than 400"


@pytest.mark.parametrize("head", ["Wav2Vec2Model", "Wav2Vec2ForCTC"])
def test_a_checkpoint_without_the_head_is_refused_at_plan_time(tmp_path, head):
    model = audio.wav2vec2(tmp_path / "model", head)
    case = Case("audio-classification", model, {"audio": FILES[:1]})
    with pytest.raises(SpecError, match=f"it is a {head}, and this takes a Wav2Vec2ForSequenceClassification"):
        plan_of(case.job(tmp_path))


def test_a_missing_feature_extractor_is_refused_at_plan_time(tmp_path):
    model = audio.wav2vec2(tmp_path / "model", "Wav2Vec2ForSequenceClassification")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(SpecError, match=r"it has no feature_extractor \(preprocessor_config.json\)"):
        plan_of(Case("audio-classification", model, {"audio": FILES[:1]}).job(tmp_path))


def test_other_rates_come_to_the_models_own(zoo, tmp_path):
    """A tone is the same tone at 8, 16 and 44.1 kHz: the scores agree as far as a resampler can bring them."""
    tones = []
    for rate in (8_000, 16_000, 44_100):
        wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
        tones.append({"audio": None, "array": wave, "sampling_rate": rate})
    case = Case("audio-classification", zoo["ast"], {"audio": tones}, {"top_k": None}, SAMPLES)
    low, same, high = (
        {entry["label"]: entry["score"] for entry in row}
        for row in run_inline(plan_of(case.job(tmp_path)))["labels"].to_pylist()
    )
    assert_close(high, same, tolerance=0.05)
    assert_close(low, same, tolerance=0.05)
    other = (0.5 * np.sin(2 * np.pi * 1_760 * np.arange(16_000) / 16_000)).astype(np.float32)
    rows = {"audio": [{"audio": None, "array": other, "sampling_rate": 16_000}]}
    job = Case("audio-classification", zoo["ast"], rows, {"top_k": None}, SAMPLES).job(tmp_path)
    unlike = {entry["label"]: entry["score"] for entry in run_inline(plan_of(job))["labels"].to_pylist()[0]}
    assert max(abs(unlike[label] - same[label]) for label in same) > 0.05
