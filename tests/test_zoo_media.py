"""Each checkpoint for pictures and sound is whole, the same when built again, and tells its inputs apart.

Where transformers has a pipeline for it, that pipeline is what runs. Not here: video-classification wants PyAV,
mask-generation and Qwen-VL's processors torchvision.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.zoo import audio, chat, documents, media, pictures, vision, vqa

PICTURES = [pictures.picture(seed, size) for seed, size in enumerate([(32, 32), (50, 40), (40, 120)])]
SOUNDS = [pictures.samples(seed, seconds) for seed, seconds in enumerate([0.7, 1.5, 1.1])]
NAMES = {"candidate_labels": ["cat", "a good movie", "red river"]}
PAGE = {
    "image": None,
    "word_boxes": [["paris", [10, 10, 50, 20]], ["river", [60, 10, 99, 20]], ["two", [10, 300, 50, 340]]],
}
TABLE = {"table": {"city": ["paris", "london"], "actor": ["3", "10"]}}
ASKED = [{"query": "how many actor", **TABLE}, {"query": "what city", **TABLE}]
PIPELINES = {
    "vit": ("image-classification", vision.vit, {}, PICTURES, {}),
    "vit features": ("image-feature-extraction", vision.vit, {"head": "ViTModel"}, PICTURES, {}),
    "convnext": ("image-classification", vision.convnext, {}, PICTURES, {}),
    "dinov2": ("image-feature-extraction", vision.dinov2, {}, PICTURES, {}),
    "detr": ("object-detection", vision.detr, {}, PICTURES, {}),
    "yolos": ("object-detection", vision.yolos, {}, PICTURES, {}),
    "segformer": ("image-segmentation", vision.segformer, {}, PICTURES, {}),
    "panoptic": ("image-segmentation", vision.detr, {"head": "DetrForSegmentation"}, PICTURES, {"threshold": 0.3}),
    "dpt": ("depth-estimation", vision.dpt, {}, PICTURES, {}),
    "superglue": ("keypoint-matching", vision.superglue, {}, [PICTURES[:2], PICTURES[1:]], {}),
    "clip": ("zero-shot-image-classification", media.clip, {}, PICTURES, NAMES),
    "siglip": ("zero-shot-image-classification", media.siglip, {}, PICTURES, NAMES),
    "owlvit": ("zero-shot-object-detection", media.owlvit, {}, [{"image": p, **NAMES} for p in PICTURES], {}),
    "layoutlm": (
        "document-question-answering",
        documents.layoutlm,
        {},
        [{"question": q, **PAGE} for q in ("who", "what city")],
        {},
    ),
    "tapas": ("table-question-answering", documents.tapas, {}, ASKED, {}),
    "whisper": ("automatic-speech-recognition", audio.whisper, {}, SOUNDS, {}),
    "whisper times": ("automatic-speech-recognition", audio.whisper, {}, SOUNDS, {"return_timestamps": True}),
    "wav2vec2": ("automatic-speech-recognition", audio.wav2vec2, {}, SOUNDS, {}),
    "wav2vec2 masked": ("automatic-speech-recognition", audio.wav2vec2, {"masked": True}, SOUNDS, {}),
    "hubert": ("audio-classification", audio.wav2vec2, {"head": "HubertForSequenceClassification"}, SOUNDS, {}),
    "ast": ("audio-classification", audio.ast, {}, SOUNDS, {}),
    "clap": ("zero-shot-audio-classification", audio.clap, {}, SOUNDS, NAMES),
    "vits": ("text-to-audio", audio.vits, {}, ["the good movie", "one"], {}),
}
OTHERS = {
    "blip": (vqa.blip, {"head": "BlipForConditionalGeneration"}),
    "blip answers": (vqa.blip, {}),
    "blip matches": (vqa.blip, {"head": "BlipForImageTextRetrieval"}),
    "git": (media.git, {}),
    "vision_encoder_decoder": (media.vision_encoder_decoder, {}),
    "llava": (chat.llava, {}),
    "paddleocr_vl": (chat.paddleocr_vl, {}),
    "videomae": (vision.videomae, {}),
    "speecht5": (audio.speecht5, {}),
    "hifigan": (audio.hifigan, {}),
}
KINDS = {name: (made, config) for name, (_, made, config, *_) in PIPELINES.items()} | OTHERS


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny kernels: threads that wait for each other on a busy machine take a hundred times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(name in KINDS) -> its folder, built once."""
    folders: dict[str, Path] = {}

    def built(name: str) -> Path:
        if name not in folders:
            made, config = KINDS[name]
            folders[name] = made(tmp_path_factory.mktemp("zoo") / name.replace(" ", "-"), **config)
        return folders[name]

    return built


def model_of(folder: Path):
    """(model, loading report) by the class that config.json names."""
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    return model.eval(), report


def told(output) -> str:
    """A pipeline's answer in letters: arrays, masks and depths with all their numbers."""
    if isinstance(output, dict):
        return str({key: told(value) for key, value in output.items()})
    if isinstance(output, (list, tuple)):
        return str([told(item) for item in output])
    return str(np.asarray(output).tolist())


def different(outputs) -> bool:
    return len({told(output) for output in outputs}) == len(outputs) > 1


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_is_whole_and_the_same_when_built_again(name, checkpoint, tmp_path):
    import torch

    first = checkpoint(name)
    _, report = model_of(first)
    assert not any(report.values()), report
    torch.manual_seed(1234)  # what torch draws must not reach the weights
    made, config = KINDS[name]
    again = made(tmp_path / "again", **config)
    assert {f.name: f.read_bytes() for f in first.iterdir()} == {f.name: f.read_bytes() for f in again.iterdir()}


@pytest.mark.parametrize("name", PIPELINES)
def test_its_pipeline_runs_and_answers_each_input_differently(name, checkpoint):
    from transformers import pipeline

    task, _, _, inputs, params = PIPELINES[name]
    ask = pipeline(task, model=str(checkpoint(name)))
    outputs = [ask(**one, **params) if isinstance(one, dict) else ask(one, **params) for one in inputs]
    assert all(outputs)
    assert different(outputs)


@pytest.mark.parametrize("name", ["blip", "git", "vision_encoder_decoder"])
def test_a_caption_ends_or_is_cut_and_differs_between_pictures(name, checkpoint):
    from transformers import AutoImageProcessor

    model, _ = model_of(checkpoint(name))
    images = AutoImageProcessor.from_pretrained(checkpoint(name))
    captions = [model.generate(**images(p, return_tensors="pt"), max_new_tokens=8).numpy() for p in PICTURES]
    assert different(captions)


def test_blip_answers_differ_between_pictures(checkpoint):
    from transformers import AutoProcessor

    model, _ = model_of(checkpoint("blip answers"))
    processor = AutoProcessor.from_pretrained(checkpoint("blip answers"))
    asked = [processor(images=p, text="who is the actor", return_tensors="pt") for p in PICTURES]
    assert different([model.generate(**one, max_new_tokens=6).numpy() for one in asked])


@pytest.mark.parametrize("name", ["llava", "paddleocr_vl"])
def test_a_chat_about_a_picture_depends_on_picture_and_words(name, checkpoint):
    from transformers import pipeline

    ask = pipeline("image-text-to-text", model=str(checkpoint(name)))
    outputs = []
    for image, text in [(PICTURES[1], "describe"), (PICTURES[2], "describe"), (PICTURES[2], "who is the actor")]:
        turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
        outputs.append(ask(text=[turn], max_new_tokens=8, return_full_text=False)[0]["generated_text"])
    assert different(outputs)


def test_a_larger_picture_has_more_patches_in_paddleocr_vl(checkpoint):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint("paddleocr_vl"))
    made = processor(images=PICTURES[:2], text=["<|IMAGE_PLACEHOLDER|>"] * 2, padding=True, return_tensors="pt")
    grids = made["image_grid_thw"].tolist()
    assert len(made["pixel_values"]) == sum(t * h * w for t, h, w in grids)
    assert grids[0] != grids[1]


def test_speecht5_speaks_each_text_differently_and_stops(checkpoint):
    import torch
    from transformers import SpeechT5HifiGan, pipeline

    vocoder = SpeechT5HifiGan.from_pretrained(checkpoint("hifigan"))
    say = pipeline("text-to-audio", model=str(checkpoint("speecht5")), vocoder=vocoder)
    voice = {"forward_params": {"speaker_embeddings": torch.ones(1, 8)}}
    lengths = [say(text, **voice)["audio"].size for text in ("a bad film was very great", "one")]
    assert lengths[0] != lengths[1]


def test_videomae_tells_films_apart(checkpoint):
    import torch
    from transformers import AutoImageProcessor

    model, _ = model_of(checkpoint("videomae"))
    frames = AutoImageProcessor.from_pretrained(checkpoint("videomae"))
    films = [[pictures.picture(start + i) for i in range(4)] for start in (0, 4)]
    with torch.inference_mode():
        assert different([model(**frames(film, return_tensors="pt")).logits.numpy() for film in films])


@pytest.mark.parametrize(("name", "count"), [("pictures", 24), ("sounds", 20)])
def test_pictures_and_sounds_are_seeded_and_no_two_alike(name, count):
    found = getattr(pictures, name)(count)
    assert len(set(found)) == count
    assert found == getattr(pictures, name)(count)


def test_pictures_come_in_every_size_and_mode():
    from PIL import Image

    found = [Image.open(io.BytesIO(one)) for one in pictures.pictures(48)]
    assert {image.size for image in found} == set(pictures.SIZES)
    assert {image.mode for image in found} == set(pictures.MODES)
    assert {image.format for image in found} == {"PNG", "JPEG"}


@pytest.mark.parametrize("kind", pictures.broken_pictures())
def test_no_decoder_takes_a_broken_picture(kind):
    from PIL import Image

    with pytest.raises((OSError, Image.DecompressionBombError)):  # an unknown format is an OSError too
        Image.open(io.BytesIO(pictures.broken_pictures()[kind])).load()


def test_wav_and_flac_hold_the_same_samples_at_every_rate():
    import soundfile

    for rate in pictures.RATES:
        (one, rate1), (other, rate2) = (
            soundfile.read(io.BytesIO(made(5, 0.3, rate, 2))) for made in (pictures.wav, pictures.flac)
        )
        assert rate1 == rate2 == rate
        assert one.shape == (round(0.3 * rate), 2)
        assert np.array_equal(one, other)
        assert not np.array_equal(one[:, 0], one[:, 1])


@pytest.mark.parametrize("kind", sorted(set(pictures.broken_sounds()) - {"truncated", "no samples"}))
def test_no_decoder_takes_a_broken_sound(kind):
    import soundfile

    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(io.BytesIO(pictures.broken_sounds()[kind]))


@pytest.mark.parametrize(("kind", "least", "most"), [("truncated", 1, 7_999), ("no samples", 0, 0)])
def test_a_cut_sound_is_read_as_what_is_left(kind, least, most):
    import soundfile

    assert least <= len(soundfile.read(io.BytesIO(pictures.broken_sounds()[kind]))[0]) <= most
