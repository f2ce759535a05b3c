import io
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from hfbatch.errors import SpecError
from hfbatch.kinds import AUDIO
from hfbatch.tasks.speech import Part, seq2seq_text
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import audio
from tests.zoo.pictures import wav

TASK = "automatic-speech-recognition"
LENGTHS = (0.3, 0.5, 0.5, 1.99, 2.0, 2.01, 3.5)  # seconds; the tiny Whisper's window is 2
FILES = [wav(i, seconds) for i, seconds in enumerate(LENGTHS)]
SILENCE = wav(0, 0.1).replace(wav(0, 0.1)[44:], bytes(3200))

pytestmark = pytest.mark.filterwarnings("ignore:std:UserWarning")  # torch, where transformers aligns a text of no words


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearing")
    whisper = audio.whisper(folder / "whisper")
    settings = whisper / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_length": 14}))
    return {
        "whisper": whisper,
        "wav2vec2": audio.wav2vec2(folder / "wav2vec2"),
        "masked": audio.wav2vec2(folder / "masked", masked=True),
        "hubert": audio.wav2vec2(folder / "hubert", "HubertForCTC"),
    }


def read(file: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(file), dtype="float32")[0]


def refused(model, tmp_path, **params) -> str:
    with pytest.raises(SpecError) as failure:
        plan_of(Case(TASK, model, {"audio": FILES[:1]}, params).job(tmp_path))
    return str(failure.value)


def as_reference(row: dict) -> dict:
    if row["chunks"] is None:
        return {"text": row["text"]}
    chunks = [{"text": c["text"], "timestamp": (c["start"], c["end"])} for c in row["chunks"]]
    return {"text": row["text"], "chunks": chunks}


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("whisper", {}),
        ("whisper", {"language": "German", "task": "translate", "num_beams": 1, "max_new_tokens": 7}),
        ("whisper", {"chunk_length_s": 1.5, "stride_length_s": [0.3, 0.1], "num_beams": 1, "max_new_tokens": 5}),
        ("wav2vec2", {}),
        ("wav2vec2", {"chunk_length_s": 1.0, "return_timestamps": "word"}),
        ("masked", {"return_timestamps": "char"}),
        ("masked", {"chunk_length_s": 1.5, "stride_length_s": [0.2, 0.4]}),
        ("hubert", {"chunk_length_s": 2.0, "stride_length_s": 0.3}),
    ],
    ids=str,
)
def test_values_equal_transformers_pipeline(zoo, tmp_path, model, params):
    files = FILES[1::2] if model == "whisper" else FILES  # it takes its time, in transformers too
    output = check(Case(TASK, zoo[model], {"audio": files}, params), tmp_path)
    compare(output, zoo[model], files, params)


@pytest.mark.parametrize(
    "params", [{"return_timestamps": True}, {"return_timestamps": "word", "num_beams": 2}], ids=str
)
def test_timestamps_of_whisper_equal_transformers_pipeline_in_any_batch(zoo, tmp_path, params):
    files, params = [FILES[1], FILES[5]], {"num_beams": 1, "max_new_tokens": 8, **params}
    job = Case(TASK, zoo["whisper"], {"audio": files}, params).job(tmp_path)
    output = run_inline(plan_of(job))
    compare(output, zoo["whisper"], files, params)
    assert output["chunks"].null_count == 0
    assert output["chunks"].combine_chunks().flatten().field("start")[0].is_valid
    assert run_inline(plan_of(job, max_batch_rows=1))["chunks"] == output["chunks"]


def compare(output, model, files, params) -> None:
    """With the pipeline on one file after another."""
    reference = pipeline(TASK, model=str(model), device="cpu")
    own = ("chunk_length_s", "stride_length_s", "return_timestamps")
    asked = {"chunk_length_s": audio.WINDOW} if "whisper" in model.name else {}
    asked |= {name: value for name, value in params.items() if name in own}
    generation = {name: value for name, value in params.items() if name not in own}
    asked |= {"generate_kwargs": generation} if generation else {}
    expected = [{**reference(read(file), **asked)} for file in files]
    assert_close([as_reference(row) for row in output.to_pylist()], expected)
    assert len({row["text"] for row in expected}) >= len(files) - 1, "a model that always says the same tests nothing"


def test_samples_and_files_of_the_same_sound_give_the_same_and_silence_is_no_error(zoo, tmp_path):
    rows = [{"array": read(file), "sampling_rate": 16_000} for file in (FILES[0], SILENCE)]
    arrays = run_inline(plan_of(Case(TASK, zoo["wav2vec2"], {"audio": rows}, types={"audio": AUDIO}).job(tmp_path)))
    files = run_inline(plan_of(Case(TASK, zoo["wav2vec2"], {"audio": [FILES[0], SILENCE]}).job(tmp_path)))
    assert files["error"].null_count == 2
    assert arrays["text"] == files["text"]
    assert not read(SILENCE).any()


def test_a_last_chunk_that_makes_no_frame_is_left_out(zoo, tmp_path):
    """One sample past the second chunk: without strides the pipeline fails on a chunk of one sample."""
    sound, params = read(wav(3, 2.0)), {"chunk_length_s": 1.0, "stride_length_s": 0.0}
    rows = [{"array": each, "sampling_rate": 16_000} for each in (sound, np.append(sound, np.float32(0.1)))]
    output = run_inline(plan_of(Case(TASK, zoo["wav2vec2"], {"audio": rows}, params, {"audio": AUDIO}).job(tmp_path)))
    assert output["error"].null_count == 2
    assert output["text"][0] == output["text"][1]


def test_too_short_a_sound_is_an_error_and_the_others_go_on(zoo, tmp_path):
    files = [FILES[0], wav(1, 300 / 16_000), FILES[1]]
    errors = run_inline(plan_of(Case(TASK, zoo["masked"], {"audio": files}).job(tmp_path)))["error"].to_pylist()
    assert errors == [None, "too_short: 300 samples at 16000 Hz; the model hears no less than 400", None]


@pytest.mark.parametrize(
    ("model", "params", "says"),
    [
        ("whisper", {"chunk_length_s": 2.5}, "params.chunk_length_s: this model hears 2 s at once"),
        ("whisper", {"stride_length_s": 1.0}, "params.stride_length_s: 1 \\+ 1 s leave nothing of a chunk of 2 s"),
        ("whisper", {"return_timestamps": "char"}, "a whisper model cannot tell 'char'; write false or true or word"),
        ("whisper", {"language": "klingon"}, "no 'klingon' here; this model knows de, en, es, fr"),
        ("whisper", {"language": "pt"}, "no 'pt' here"),
        ("wav2vec2", {"language": "en"}, "params.language: a wav2vec2 model has no such setting; remove it"),
        ("wav2vec2", {"num_beams": 2}, "params.num_beams: a wav2vec2 model has no such setting"),
        ("wav2vec2", {"return_timestamps": True}, "cannot tell 'true'; write false or word or char"),
        ("wav2vec2", {"stride_length_s": 1}, "params.stride_length_s: it needs chunk_length_s"),
    ],
    ids=str,
)
def test_params_that_do_not_go_with_the_model_are_refused_at_plan_time(zoo, tmp_path, model, params, says):
    assert re.search(says, refused(zoo[model], tmp_path, **params))


def test_a_whisper_that_knows_one_language_takes_none(zoo, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(zoo["whisper"], model)
    settings = model / "generation_config.json"
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps({**told, "is_multilingual": False}))
    assert "params.language: this model knows English alone" in refused(model, tmp_path, language="en")


def test_word_timestamps_need_a_whisper_that_says_which_heads_align(zoo, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(zoo["whisper"], model)
    settings = model / "generation_config.json"
    told = json.loads(settings.read_text())
    del told["alignment_heads"]
    settings.write_text(json.dumps(told))
    assert "no alignment_heads; write true" in refused(model, tmp_path, return_timestamps="word")


def test_wrong_heads_and_missing_parts_are_refused_at_plan_time(zoo, tmp_path):
    base = audio.wav2vec2(tmp_path / "base", "Wav2Vec2Model")
    assert "it is a Wav2Vec2Model, and this takes a Wav2Vec2ForCTC" in refused(base, tmp_path)
    for name, part in (("tokenizer_config.json", "tokenizer"), ("preprocessor_config.json", "feature_extractor")):
        model = tmp_path / part
        shutil.copytree(zoo["wav2vec2"], model)
        (model / name).unlink()
        (model / "vocab.json").unlink()
        assert f"it has no {part}" in refused(model, tmp_path)


def moonshine(folder):
    """A seq2seq model of raw sound that is no Whisper, with words of a few letters."""
    import tokenizers
    import transformers

    from tests.zoo.vision import saved

    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "decoder_start_token_id": 1}
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in HEADS.items()}
    config = transformers.MoonshineConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, partial_rotary_factor=0.5, **sizes, **tokens
    )
    model = transformers.MoonshineForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(max_length=10, **tokens)
    return saved(folder, model, transformers.Wav2Vec2FeatureExtractor(), tokenizer)


HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


def test_other_models_that_write_text_equal_transformers_pipeline_too(tmp_path):
    model, files = moonshine(tmp_path / "model"), FILES[:4]
    output = check(Case(TASK, model, {"audio": files}, {"num_beams": 2}), tmp_path)
    compare(output, model, files, {"num_beams": 2})
    assert "a moonshine model cannot tell 'true'; write false" in refused(model, tmp_path, return_timestamps=True)
    chunked = Case(TASK, model, {"audio": [FILES[6]]}, {"chunk_length_s": 1.0, "num_beams": 1}).job(tmp_path)
    assert run_inline(plan_of(chunked))["text"][0].as_py()


def test_neighbours_of_a_seq2seq_model_meet_where_their_texts_agree():
    class Letters:
        all_special_ids = (0,)

        def decode(self, tokens, **_):
            return "".join(chr(token) for token in tokens)

    def text(*parts):
        made = [Part(np.array([0, *map(ord, part), 0]), (1, 0, 0)) for part in parts]
        return seq2seq_text(made, Letters())

    assert text("the quick brown", "brown fox jumps") == "the quick brown fox jumps"
    assert text("no overlap", "xyz") == "no overlapxyz"
    assert text("", "ab") == "ab"
    assert text("ab", "longer than ab") == "ablonger than ab"
