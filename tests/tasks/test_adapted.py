import io
import json
import tempfile
from importlib.util import find_spec
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

from hfbatch import tasks
from hfbatch.errors import RowError, SpecError
from hfbatch.sequences import Ragged, Sequences
from hfbatch.tasks import adapted
from hfbatch.tasks.adapted_answers import TableQuestionAnswering, TableQuestionAnsweringParams
from hfbatch.tasks.base import KEY
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check, predictions
from tests.zoo import audio, chat, documents, media, pictures, vision

IMAGES = [pictures.png(1), pictures.png(2, (50, 40)), pictures.jpeg(3, (33, 57), orientation=6), pictures.png(4)]
SOUNDS = [pictures.wav(seed, seconds) for seed, seconds in enumerate([0.7, 1.5, 1.1])]
LABELS = ["cat", "a good movie", "red river"]
BOXES = [["paris", [10, 10, 50, 20]], ["river", [60, 10, 99, 20]], ["two", [10, 300, 50, 340]]]
TABLES = [{"city": ["paris", "london"], "actor": ["3", "10"]}, {"city": ["x"], "actor": ["1"]}]


def opened(image: bytes):
    return Image.open(io.BytesIO(image))


def film(seed: int, frames: int = 6, side: int = 32) -> bytes:
    """A short video of coloured noise, losslessly coded."""
    rng, into = np.random.default_rng(seed), io.BytesIO()
    with av.open(into, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=5, width=side, height=side, pix_fmt="bgr0")
        for _ in range(frames):
            picture = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return into.getvalue()


def results(output) -> list:
    return [json.loads(text) for text in output["result"].to_pylist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lambda made, name, **config: made(tmp_path_factory.mktemp("adapted") / name, **config)


def test_every_task_of_the_installed_transformers_is_native_or_adapted():
    names = {task.name: task.adapted for task in tasks.all()}
    missing = [name for name in SUPPORTED_TASKS if tasks.find(name).name not in names]
    assert not missing
    assert {name for name, adapted in names.items() if adapted} <= SUPPORTED_TASKS.keys()
    assert all(tasks.find(alias).name == tasks.find(name).name for alias, name in TASK_ALIASES.items())
    assert sum(names.values()) >= 10


def test_depth_is_a_picture_an_array_and_its_range(folder, tmp_path):
    model = folder(vision.dpt, "dpt")
    output = check(Case("depth-estimation", model, {"image": IMAGES}), tmp_path)
    reference = pipeline("depth-estimation", model=str(model), device="cpu")
    for row, image in zip(output.to_pylist(), IMAGES, strict=True):
        expected = reference(opened(image).convert("RGB") if image != IMAGES[2] else upright(image))
        depth = np.load(io.BytesIO(row["predicted_depth"]))
        assert np.allclose(depth, expected["predicted_depth"].numpy(), atol=1e-4)
        assert np.abs(np.asarray(opened(row["depth"]), int) - np.asarray(expected["depth"], int)).max() <= 1
        about = {"height": depth.shape[0], "width": depth.shape[1], "min": depth.min(), "max": depth.max()}
        assert json.loads(row["result"]) == pytest.approx(about)
    assert len({row["predicted_depth"] for row in output.to_pylist()}) == len(IMAGES)


def upright(image: bytes):
    from PIL import ImageOps

    return ImageOps.exif_transpose(opened(image)).convert("RGB")


@pytest.mark.parametrize(
    ("made", "config", "params"),
    [
        (vision.segformer, {}, {}),
        (vision.detr, {"head": "DetrForSegmentation"}, {"threshold": 0.3, "subtask": "panoptic"}),
    ],
    ids=["segformer", "detr"],
)
def test_segments_name_their_masks(folder, tmp_path, made, config, params):
    model = folder(made, "model", **config)
    output = check(Case("image-segmentation", model, {"image": IMAGES[:2]}, params), tmp_path)
    reference = pipeline("image-segmentation", model=str(model), device="cpu")
    segments = 0
    for row, found, image in zip(output.to_pylist(), results(output), IMAGES, strict=False):
        expected = reference(opened(image), **params)
        masks = [opened(mask) for mask in row["masks"]]
        plain = [{**segment, "mask": number} for number, segment in enumerate(expected)]
        assert_close(found, plain)
        assert all(np.array_equal(masks[s["mask"]], expected[s["mask"]]["mask"]) for s in found)
        segments += len(found)
    assert segments


def test_points_of_two_images_are_matched(folder, tmp_path):
    model = folder(vision.superglue, "superglue")
    rows = {"image": IMAGES[:3], "other_image": IMAGES[1:]}
    output = check(Case("keypoint-matching", model, rows), tmp_path)
    reference = pipeline("keypoint-matching", model=str(model), device="cpu")
    expected = [reference([upright(a), upright(b)]) for a, b in zip(*rows.values(), strict=True)]
    assert_close(results(output), expected)
    assert any(expected)


@pytest.mark.parametrize("labels", ["param", "column"])
def test_objects_of_any_label(folder, tmp_path, labels):
    model = folder(media.owlvit, "owlvit")
    own = [LABELS, LABELS[:1], LABELS[1:]]
    rows = {"image": IMAGES[:3]} | ({"candidate_labels": own} if labels == "column" else {})
    params = {"threshold": 0.05, "top_k": 4} | ({"candidate_labels": LABELS} if labels == "param" else {})
    output = check(Case("zero-shot-object-detection", model, rows, params), tmp_path)
    reference = pipeline("zero-shot-object-detection", model=str(model), device="cpu")
    given = own if labels == "column" else [LABELS] * 3
    expected = [
        reference(upright(image), candidate_labels=names, threshold=0.05, top_k=4)
        for image, names in zip(IMAGES[:3], given, strict=True)
    ]
    assert_close(results(output), expected)
    assert any(expected)


def test_sounds_of_any_label(folder, tmp_path):
    model = folder(audio.clap, "clap")
    short = [pictures.wav(seed, seconds) for seed, seconds in enumerate([0.7, 0.3, 0.5])]
    case = Case("zero-shot-audio-classification", model, {"audio": short}, {"candidate_labels": LABELS})
    output = check(case, tmp_path)
    reference = pipeline("zero-shot-audio-classification", model=str(model), device="cpu")
    rate = reference.feature_extractor.sampling_rate
    from hfbatch.tasks.audio import decode, resampled

    expected = [reference(resampled(*decode(sound), rate), candidate_labels=LABELS) for sound in short]
    assert_close(results(output), expected)


def test_videos_are_classified(folder, tmp_path):
    model = folder(vision.videomae, "videomae")
    films = [film(seed) for seed in range(3)]
    output = check(Case("video-classification", model, {"video": films}, {"top_k": 2}), tmp_path)
    reference = pipeline("video-classification", model=str(model), device="cpu")
    expected = []
    for number, content in enumerate(films):
        (tmp_path / f"{number}.mkv").write_bytes(content)
        expected.append(reference(str(tmp_path / f"{number}.mkv"), top_k=2))
    assert_close(results(output), expected)


def test_words_of_a_page_answer(folder, tmp_path):
    model = folder(documents.layoutlm, "layoutlm")
    rows = {
        "image": IMAGES[:2],
        "question": ["who was it", "what city"],
        "word_boxes": [json.dumps(BOXES), json.dumps(BOXES[1:])],
    }
    output = check(Case("document-question-answering", model, rows, {"top_k": 2}), tmp_path)
    reference = pipeline("document-question-answering", model=str(model), device="cpu")
    expected = [
        reference({"image": upright(image), "question": question, "word_boxes": json.loads(boxes)}, top_k=2)
        for image, question, boxes in zip(*rows.values(), strict=True)
    ]
    assert_close(results(output), [found if isinstance(found, list) else [found] for found in expected])


def test_a_page_without_words_needs_tesseract_and_the_plan_says_so(folder, tmp_path):
    model = folder(documents.layoutlm, "layoutlm2")
    rows = {"image": IMAGES[:1], "question": ["who"]}
    with pytest.raises(SpecError, match="needs pytesseract: install it with tesseract, or map word_boxes to a column"):
        plan_of(Case("document-question-answering", model, rows).job(tmp_path))


def test_tables_answer(folder, tmp_path):
    model = folder(documents.tapas, "tapas")
    records = [{"city": "paris", "actor": 3}, {"city": "london", "actor": 10}]
    rows = {
        "table": [json.dumps(TABLES[0]), json.dumps(TABLES[1]), json.dumps(records)],
        "query": ["how many actor", "what city", "how many actor"],
    }
    output = check(Case("table-question-answering", model, rows), tmp_path)
    reference = pipeline("table-question-answering", model=str(model), device="cpu")
    expected = [
        reference({"table": table, "query": query})
        for table, query in zip([*TABLES, TABLES[0]], rows["query"], strict=True)
    ]
    plain = json.loads(json.dumps(expected))  # coordinates are tuples there
    assert_close(results(output), plain)


def test_what_is_no_table_is_that_rows_error(folder, tmp_path):
    model = folder(documents.tapas, "tapas2")
    bad = ["{", "[]", "3", '{"a": [1, 2], "b": [1]}', json.dumps(TABLES[0])]
    output = run_inline(
        plan_of(Case("table-question-answering", model, {"table": bad, "query": ["who"] * 5}).job(tmp_path))
    )
    codes = [error and error.partition(":")[0] for error in output["error"].to_pylist()]
    assert codes == ["bad_json"] * 4 + [None]


def test_the_part_of_a_long_sound_that_is_heard_depends_on_the_row_alone(folder, tmp_path):
    model = folder(audio.clap, "clap2")  # hears half a second or so, from a random place on
    long = [pictures.wav(seed, 3.0) for seed in range(3)]
    check(Case("zero-shot-audio-classification", model, {"audio": long}, {"candidate_labels": LABELS}), tmp_path)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is there")
def test_any_to_any_needs_torchvision_and_the_plan_says_so(folder, tmp_path):
    model = folder(chat.llava, "llava")
    rows = {"text": ["what is it"], "image": IMAGES[:1]}
    with pytest.raises(SpecError, match="any-to-any pipeline needs torchvision: install the build that goes"):
        plan_of(Case("any-to-any", model, rows).job(tmp_path))


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
def test_any_to_any_writes_text(folder, tmp_path):
    model = folder(chat.llava, "llava")
    rows = {"text": ["what is it", "the good movie"], "image": IMAGES[:2]}
    output = check(Case("any-to-any", model, rows, {"max_new_tokens": 5}), tmp_path)
    reference = pipeline("any-to-any", model=str(model), device="cpu")
    expected = []
    for text, image in zip(*rows.values(), strict=True):
        content = [{"type": "image", "image": opened(image)}, {"type": "text", "text": text}]
        made = reference([{"role": "user", "content": content}], max_new_tokens=5, return_full_text=False)
        expected.append({"generated_text": made[0]["generated_text"]})
    assert results(output) == expected


def test_a_broken_file_is_its_rows_error_alone(folder, tmp_path):
    model = folder(vision.dpt, "dpt2")
    rows = {"image": [IMAGES[0], *pictures.broken_pictures().values(), IMAGES[1]]}
    case = Case("depth-estimation", model, rows)
    output = run_inline(plan_of(case.job(tmp_path)))
    errors = output["error"].to_pylist()
    assert errors[0] is None
    assert errors[-1] is None
    assert all(errors[1:-1])
    whole = run_inline(plan_of(Case("depth-estimation", model, {"image": [IMAGES[0]]}).job(tmp_path)))
    assert predictions(output, case.task, {})[0] == predictions(whole, case.task, {})[0]


def test_what_others_draw_in_the_process_does_not_depend_on_the_rows():
    def draw():
        return np.random.random(), torch.rand(1).item()

    def seed():
        np.random.seed(7)
        torch.manual_seed(7)

    seed()
    expected = draw()
    seed()
    with adapted._drawn_from(2**64 - 1):
        first = draw()
    assert draw() == expected
    with adapted._drawn_from(2**64 - 1):
        assert draw() == first != expected


def test_films_leave_no_file_behind_and_playlists_are_refused(folder, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (scratch / "other.mkv").write_bytes(film(1))
    films = [film(0), b"ffconcat version 1.0\nfile other.mkv\n", b"no film", film(2)]
    model = folder(vision.videomae, "videomae2")
    output = run_inline(plan_of(Case("video-classification", model, {"video": films}).job(tmp_path)))
    errors = output["error"].to_pylist()
    assert [error and error.partition(":")[0] for error in errors] == [None, "bad_video", "forward_failed", None]
    assert "store the video itself" in errors[1]
    assert [path.name for path in scratch.iterdir()] == ["other.mkv"]


def test_a_template_without_a_place_for_the_label_is_refused_at_plan_time(folder, tmp_path):
    model = folder(audio.clap, "clap3")
    for template in ("This is a sound.", "{label}", "{", "{} and {}"):
        params = {"candidate_labels": LABELS, "hypothesis_template": template}
        case = Case("zero-shot-audio-classification", model, {"audio": SOUNDS}, params)
        with pytest.raises(SpecError, match=r"hypothesis_template.*write {} once"):
            plan_of(case.job(tmp_path))


def test_json_nested_beyond_reason_is_its_rows_error():
    with pytest.raises(RowError, match="bad_json: table: "):
        adapted.from_json("table", "[" * 100_000, list)


def test_numbers_of_any_library_are_json_and_what_json_cannot_say_is_an_error():
    task = TableQuestionAnswering(TableQuestionAnsweringParams(), SimpleNamespace(config=None))
    request = Ragged.from_arrays([np.frombuffer(b"{}", np.uint8)], np.uint8)
    row = Sequences(np.arange(1), {"request": request, KEY: np.array([1], np.uint64)})
    answer = {"score": np.float32(0.5), "box": np.arange(2), "same": torch.tensor(True), "flag": np.bool_(False)}
    task.pipeline = lambda request, **settings: answer
    assert json.loads(task._answer(row, 0))["result"] == {"score": 0.5, "box": [0, 1], "same": True, "flag": False}
    for value in (float("nan"), np.float32("inf"), torch.tensor([1.0, float("nan")])):
        task.pipeline = lambda request, value=value, **settings: {"score": value}
        with pytest.raises(RowError, match="non_finite: the pipeline"):
            task._answer(row, 0)
