import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import SpeechT5HifiGan, pipeline

from hfbatch import columns
from hfbatch.errors import SpecError
from tests.inline import blocks_of, plan_of, run_inline
from tests.tasks.contract import Case, check
from tests.zoo import audio

TEXTS = ["good day", "a", "the sun and the rain", "good day", "x" * 40, "Ünï one, two!", "ok 😀"]
VOICE = [0.5, -0.25, 1.0, 0.0, 0.125, -1.0, 0.75, 0.3]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaking")
    return {
        "vits": audio.vits(folder / "vits", noise_scale=0.667, noise_scale_duration=0.8),
        "voices": audio.vits(folder / "voices", num_speakers=3, speaker_embedding_size=8),
        "speecht5": audio.speecht5(folder / "speecht5", speech_decoder_prenet_dropout=0.5),
        "hifigan": audio.hifigan(folder / "hifigan"),
    }


def speecht5_params(zoo, **more) -> dict:
    return {"vocoder": str(zoo["hifigan"]), "maxlenratio": 3.0, "speaker_embedding": VOICE, **more}


def waves(output: pa.Table) -> list[np.ndarray]:
    made = []
    for row in output["audio"].to_pylist():
        samples, rate = soundfile.read(io.BytesIO(row["bytes"]), dtype="float32")
        assert rate == row["sampling_rate"]
        made.append(samples)
    return made


def torch_seeds(plan) -> list[int]:
    """What a user would give torch.manual_seed for each row, to hear the same."""
    seed = plan.job.step.params["seed"]
    keys = [key for b in blocks_of(plan) for key in columns.keys(columns.ticket_of(b), b[columns.ROW].to_numpy())]
    return [int(np.random.SeedSequence([seed, int(key)]).generate_state(1, np.uint64)[0]) for key in keys]


def refused(model, tmp_path, **params) -> str:
    with pytest.raises(SpecError) as failure:
        plan_of(Case("text-to-speech", model, {"text": ["a"]}, params).job(tmp_path))
    return str(failure.value)


def test_vits_speaks_as_transformers_pipeline_does_with_the_same_random_numbers(zoo, tmp_path):
    case = Case("text-to-speech", zoo["vits"], {"text": TEXTS}, {"seed": 11})
    output = check(case, tmp_path)
    reference = pipeline("text-to-speech", model=str(zoo["vits"]), device="cpu")
    for text, seed, made in zip(TEXTS, torch_seeds(plan_of(case.job(tmp_path))), waves(output), strict=True):
        torch.manual_seed(seed)
        expected = reference(text)
        assert expected["sampling_rate"] == 16_000
        np.testing.assert_allclose(made, expected["audio"], atol=1e-4)
    assert output["audio"][0] != output["audio"][3], "two rows of one text have noise of their own"


def test_speecht5_speaks_as_transformers_pipeline_does_with_the_same_random_numbers(zoo, tmp_path):
    texts = TEXTS[:4]
    case = Case("text-to-audio", zoo["speecht5"], {"text": texts}, speecht5_params(zoo, seed=3))
    output = check(case, tmp_path)
    vocoder = SpeechT5HifiGan.from_pretrained(zoo["hifigan"])
    reference = pipeline("text-to-speech", model=str(zoo["speecht5"]), vocoder=vocoder, device="cpu")
    told = {"speaker_embeddings": torch.tensor([VOICE]), "maxlenratio": 3.0}
    for text, seed, made in zip(texts, torch_seeds(plan_of(case.job(tmp_path))), waves(output), strict=True):
        torch.manual_seed(seed)
        np.testing.assert_allclose(made, reference(text, forward_params=told)["audio"], atol=1e-4)
    assert output["audio"][0] != output["audio"][3]


def test_a_seed_gives_the_same_sound_in_any_shard_and_another_seed_another(zoo, tmp_path):
    job = Case("text-to-speech", zoo["vits"], {"text": TEXTS}, {"seed": 5}).job(tmp_path)
    once, shards = (run_inline(plan_of(job, **machine))["audio"] for machine in ({}, {"shard_rows": 2}))
    assert once == shards
    torch.manual_seed(1)  # what torch would draw from has no say
    assert once == run_inline(plan_of(job))["audio"]
    assert once[0] != run_inline(plan_of({**job, "params": {"seed": 6}}))["audio"][0]
    drawn = [plan_of({**job, "params": {}}).job.step.params["seed"] for _ in range(2)]
    assert drawn[0] == drawn[1] is not None


def test_each_row_may_have_a_voice_of_its_own(zoo, tmp_path):
    voices = [VOICE, VOICE[::-1], VOICE[:3], [*VOICE[:7], float("nan")], [*VOICE[:7], 1e300], VOICE]
    table = pa.table({"text": ["a", "a", "a", "a", "a", ""], "xvector": pa.array(voices, pa.list_(pa.float64()))})
    params = speecht5_params(zoo, speaker_embedding=None)
    job = Case("text-to-speech", zoo["speecht5"], {"text": ["a"]}, params).job(tmp_path)
    pq.write_table(table, tmp_path / "in.parquet")
    job["input"]["columns"] = {"speaker_embedding": "xvector"}
    output = run_inline(plan_of(job))
    wrong = "bad_speaker_embedding: {} numbers; the model wants 8, finite"
    assert output["error"].to_pylist() == [None, None, wrong.format(3), *[wrong.format(8)] * 2, None]
    assert output["audio"][0] != output["audio"][1]


def test_a_model_of_several_voices_is_told_which(zoo, tmp_path):
    first, last = (
        waves(run_inline(plan_of(Case("text-to-speech", zoo["voices"], {"text": ["one"]}, params).job(tmp_path))))[0]
        for params in ({"speaker_id": 0, "seed": 1}, {"speaker_id": 2, "seed": 1})
    )
    assert len(first) != len(last) or not np.allclose(first, last)
    assert "this model has 3 voices; write one of 0 to 2" in refused(zoo["voices"], tmp_path)
    assert "params.speaker_id: 3, and this model has 3 voices" in refused(zoo["voices"], tmp_path, speaker_id=3)


def test_a_slower_rate_is_longer_and_no_noise_is_always_the_same(zoo, tmp_path):
    quiet = {"noise_scale": 0.0, "noise_scale_duration": 0.0}
    rows = {"text": ["good day", "good day"]}
    same = waves(run_inline(plan_of(Case("text-to-speech", zoo["vits"], rows, quiet).job(tmp_path))))
    slow = waves(
        run_inline(plan_of(Case("text-to-speech", zoo["vits"], rows, {**quiet, "speaking_rate": 0.25}).job(tmp_path)))
    )
    np.testing.assert_array_equal(same[0], same[1])
    assert len(slow[0]) > 2 * len(same[0])


def test_texts_without_letters_are_errors_and_long_ones_are_cut(zoo, tmp_path):
    rows = {"text": ["one", "", "!?", "x" * 30]}
    output = run_inline(plan_of(Case("text-to-speech", zoo["vits"], rows, {"max_length": 21}).job(tmp_path)))
    empty = "empty_input: the text has no tokens"
    assert output["error"].to_pylist() == [None, empty, empty, None]
    assert output["truncated"].to_pylist() == [False, None, None, True]


def test_speecht5_cuts_a_text_at_its_positions_though_the_tokenizer_knows_no_limit(tmp_path):
    model = audio.speecht5(tmp_path / "model", max_text_positions=12)
    told = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": 10**30}))
    params = {"vocoder": str(audio.hifigan(tmp_path / "hifigan")), "speaker_embedding": VOICE, "maxlenratio": 1.0}
    rows = {"text": ["good", "good day, " * 120]}
    output = run_inline(plan_of(Case("text-to-speech", model, rows, params).job(tmp_path)))
    assert output["error"].to_pylist() == [None, None]
    assert output["truncated"].to_pylist() == [False, True]


def test_params_that_do_not_go_with_the_model_are_refused_at_plan_time(zoo, tmp_path):
    def told(**more):
        return refused(zoo["speecht5"], tmp_path, **speecht5_params(zoo, **more))

    assert "params.vocoder: SpeechT5 makes spectra; write microsoft/speecht5_hifigan" in told(vocoder=None)
    assert "params.vocoder: it is a vits, not a SpeechT5HifiGan" in told(vocoder=str(zoo["vits"]))
    assert "either input.columns.speaker_embedding, or params.speaker_embedding" in told(speaker_embedding=None)
    assert "params.speaker_embedding: 2 numbers; this model wants 8" in told(speaker_embedding=[1.0, 2.0])
    assert "params.speaker_id: a speecht5 model has no such setting" in told(speaker_id=0)
    assert "params.vocoder: a vits model has no such setting" in refused(
        zoo["vits"], tmp_path, vocoder=str(zoo["hifigan"])
    )
    other = audio.hifigan(tmp_path / "other", model_in_dim=20)
    assert "it reads 20 mel bins, the model writes 16" in told(vocoder=str(other))


def test_wrong_heads_and_missing_parts_are_refused_at_plan_time(zoo, tmp_path, classifier):
    assert "transformers has no AutoModelForTextToWaveform for models of type 'bert'" in refused(classifier, tmp_path)
    config = zoo["speecht5"] / "config.json"
    told = json.loads(config.read_text())
    model = audio.vits(tmp_path / "mute")
    for file in ("vocab.json", "tokenizer_config.json"):
        (model / file).unlink()
    assert "it has no tokenizer" in refused(model, tmp_path)
    other = audio.speecht5(tmp_path / "listener")
    (other / "config.json").write_text(json.dumps({**told, "architectures": ["SpeechT5ForSpeechToText"]}))
    assert "it is a SpeechT5ForSpeechToText, and this takes a SpeechT5ForTextToSpeech" in refused(other, tmp_path)
