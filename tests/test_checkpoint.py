"""What a folder holds beside weights, and the models that go with it."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfbatch.checkpoint import Checkpoint
from hfbatch.errors import SpecError
from hfbatch.load import load_job
from tests.fake_hub import fake_hub
from tests.inline import plan_of, run_inline
from tests.zoo import audio, pictures, text, vision

VOICE = [0.1] * 8


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {"speecht5": audio.speecht5, "hifigan": audio.hifigan, "vit": vision.vit, "bart": text.bart}
    return {name: make(folder / name) for name, make in made.items()}


def test_parts_are_loaded_when_asked_for_and_once(zoo):
    checkpoint = Checkpoint(str(zoo["vit"]))
    assert not set(vars(checkpoint)) & {"config", "image_processor"}
    assert checkpoint.image_processor is checkpoint.image_processor
    assert checkpoint.config.model_type == "vit"


def test_a_tokenizer_comes_without_the_truncation_and_padding_that_were_saved_with_it(zoo, tmp_path):
    folder = shutil.copytree(zoo["bart"], tmp_path / "bart")
    saved = json.loads((folder / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fixed = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    fixed |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    (folder / "tokenizer.json").write_text(json.dumps(saved | {"truncation": cut, "padding": fixed}))
    plain = Checkpoint(str(zoo["bart"])).tokenizer("the good movie was good")["input_ids"]
    assert Checkpoint(str(folder)).tokenizer("the good movie was good")["input_ids"] == plain
    assert len(plain) > 4


def test_the_settings_of_generation_are_the_folders_own_or_those_of_its_config(zoo, tmp_path):
    folder = shutil.copytree(zoo["bart"], tmp_path / "bart")
    assert Checkpoint(str(folder)).generation_config.num_beams == 2
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_beams": 3}))
    assert Checkpoint(str(folder)).generation_config.num_beams == 3


@pytest.mark.parametrize(
    ("kind", "task", "gone", "told"),
    [
        ("vit", "image-classification", ["preprocessor_config.json"], "it has no image_processor"),
        ("bart", "summarization", ["tokenizer.json", "tokenizer_config.json"], "it has no tokenizer"),
        ("speecht5", "text-to-speech", ["spm_char.model", "tokenizer_config.json"], "it has no "),
    ],
)
def test_a_part_that_is_not_there_is_refused_with_the_plan(zoo, tmp_path, kind, task, gone, told):
    folder = shutil.copytree(zoo[kind], tmp_path / kind)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt", "processor_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    pq.write_table(pa.table({"text": ["the"], "image": pa.array([b"x"])}), tmp_path / "in.parquet")
    params = {"vocoder": str(zoo["hifigan"]), "speaker_embedding": VOICE} if kind == "speecht5" else {}
    job = {"task": task, "model": {"id": str(folder)}, "input": {"path": str(tmp_path / "in.parquet")}}
    with pytest.raises(SpecError) as info:
        plan_of({**job, "params": params, "output": {"path": str(tmp_path / "out")}})
    [problem] = info.value.problems
    assert problem.key == "model.id"
    assert told in problem.message


@pytest.fixture
def speak(zoo, tmp_path):
    """A job that speaks with a model and a vocoder of the Hub."""
    pq.write_table(pa.table({"text": ["the good movie", "one"]}), tmp_path / "in.parquet")

    def job(**params):
        size = json.loads((zoo["speecht5"] / "config.json").read_text())["speaker_embedding_dim"]
        return {
            "task": "text-to-speech",
            "model": {"id": "owner/speaks"},
            "input": {"path": str(tmp_path / "in.parquet")},
            "params": {"speaker_embedding": [0.1] * size, "maxlenratio": 1.0, **params},
            "output": {"path": str(tmp_path / "out")},
        }

    with fake_hub(tmp_path / "cache") as server:
        server.commit("owner/speaks", zoo["speecht5"])
        yield server, job


def test_a_companion_is_pinned_logged_and_read_from_the_cache_afterwards(zoo, speak, monkeypatch):
    hub, job = speak
    first = hub.commit("owner/vocoder", zoo["hifigan"])
    hub.tag("owner/vocoder", "v1", first)
    plan = plan_of(job(vocoder="owner/vocoder", vocoder_revision="v1"))
    assert plan.job.step.companions["vocoder"].commit == first
    output = run_inline(plan)
    assert output["error"].null_count == 2
    logged = json.loads(output["parameters"][0].as_py())
    assert logged["vocoder"] == f"owner/vocoder@{first}"
    other = hub.commit("owner/vocoder", {**files_of(zoo["hifigan"]), "README.md": b"new"})
    moved = plan_of(job(vocoder="owner/vocoder", vocoder_revision=other))
    assert moved.job.generation != plan.job.generation


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_companion_that_is_not_there_is_a_problem_of_its_param(speak):
    _, job = speak
    with pytest.raises(SpecError) as info:
        plan_of(job(vocoder="owner/nothing"))
    assert any(problem.key == "params.vocoder" for problem in info.value.problems)


def test_a_name_of_a_task_may_say_params_and_written_ones_win():
    base = {"model": {"id": "a/b"}, "input": {"path": "x"}, "output": {"path": "y"}}
    spec = load_job({**base, "task": "translation_en_to_de"})
    assert (spec.task, spec.params) == ("translation", {"src_lang": "en", "tgt_lang": "de"})
    spec = load_job({**base, "task": "translation_en_to_de", "params": {"tgt_lang": "fr"}})
    assert spec.params == {"src_lang": "en", "tgt_lang": "fr"}
    with pytest.raises(SpecError, match="no task 'translation_en_de'"):
        load_job({**base, "task": "translation_en_de"})


def test_a_folder_whose_content_changes_is_read_again(zoo, tmp_path):
    folder = shutil.copytree(zoo["vit"], tmp_path / "vit")
    pq.write_table(pa.table({"image": pa.array([pictures.png(1)])}), tmp_path / "in.parquet")
    job = {"task": "image-classification", "model": {"id": str(folder)}, "params": {"top_k": 1}}
    job |= {"input": {"path": str(tmp_path / "in.parquet")}, "output": {"path": str(tmp_path / "out")}}
    before = run_inline(plan_of(job))["label"][0].as_py()
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {number: f"new {label}" for number, label in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert run_inline(plan_of(job))["label"][0].as_py() == f"new {before}"
