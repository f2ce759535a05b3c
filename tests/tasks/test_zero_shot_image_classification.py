import pytest
from transformers import pipeline

from hfbatch import tasks
from hfbatch.errors import SpecError
from hfbatch.tasks.base import Task
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.tasks.image_rows import IMAGES, opened
from tests.zoo import media, pictures, vqa

TASK = "zero-shot-image-classification"
LABELS = ["cat", "dog", "red fox", "a picture of this", "x"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def sigmoid(tmp_path_factory):
    return media.siglip(tmp_path_factory.mktemp("models") / "siglip")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return vqa.blip(tmp_path_factory.mktemp("models") / "blip", "BlipModel")


def expected_of(model, images, labels, **params):
    reference = pipeline(TASK, model=str(model), device="cpu")
    found = [
        reference(opened(image), candidate_labels=own, **params) for image, own in zip(images, labels, strict=True)
    ]
    return [
        {"labels": [each["label"] for each in row], "scores": [each["score"] for each in row], "truncated": False}
        for row in found
    ]


def own_columns(output):
    return output.select(["labels", "scores", "truncated"]).to_pylist()


@pytest.mark.parametrize("template", [{}, {"hypothesis_template": "{} picture"}], ids=str)
@pytest.mark.parametrize("model", ["clip", "sigmoid", "blip"])
def test_values_equal_transformers_pipeline(request, tmp_path, model, template):
    model = request.getfixturevalue(model)
    output = check(Case(TASK, model, {"image": IMAGES}, {"candidate_labels": LABELS, **template}), tmp_path)
    expected = expected_of(model, IMAGES, [LABELS] * len(IMAGES), **template)
    assert_close(own_columns(output), expected)
    assert len({row["labels"][0] for row in expected}) > 1, "a model that always says the same tests nothing"


@pytest.mark.parametrize("model", ["clip", "sigmoid"])
def test_every_row_may_have_labels_of_its_own(request, tmp_path, model):
    model = request.getfixturevalue(model)
    labels = [[*LABELS[number % 4 :], f"{number} cats"] for number in range(len(IMAGES) - 2)] + [["dog"], ["x", "x"]]
    output = check(Case(TASK, model, {"image": IMAGES, "candidate_labels": labels}), tmp_path)
    assert_close(own_columns(output), expected_of(model, IMAGES, labels))


def test_a_row_without_labels_is_an_error(clip, write_parquet, job_for):
    labels = [["cat", "dog"], [], ["cat", None], None, ["é" * 3, "<|endoftext|>"]]
    path = write_parquet("in.parquet", {"image": IMAGES[:5], "names": labels})
    job = job_for(TASK, clip, path)
    job["input"]["columns"] = {"candidate_labels": "names"}
    output = run_inline(plan_of(job))
    refused = "no_labels: candidate_labels is empty, or holds a null"
    assert output["error"].to_pylist() == [None, refused, refused, "null_input: candidate_labels is null", None]


def test_a_label_over_the_limit_is_cut_and_says_so(clip, write_parquet, job_for):
    limit = 32 - 2 - len("this is a photo of .".split()) - 1  # words of the template are several tokens
    labels = [["cat " * 5, "dog"], ["cat " * 3200, "dog"], ["dog", "cat"]]
    path = write_parquet("in.parquet", {"image": IMAGES[:3], "candidate_labels": labels})
    output = run_inline(plan_of(job_for(TASK, clip, path, hypothesis_template="{}")))
    assert output["truncated"].to_pylist() == [False, True, False]
    cut = expected_of(clip, IMAGES[1:2], [["cat " * 30, "dog"]], hypothesis_template="{}")[0]
    assert_close(sorted(output["scores"][1].as_py()), sorted(cut["scores"]))
    assert limit > 0


def test_each_label_goes_through_the_text_tower_once(clip, write_parquet, job_for, monkeypatch):
    seen = []
    task = tasks.find(TASK)
    tokens = task._tokens
    monkeypatch.setattr(
        task, "_tokens", lambda self, labels, device: seen.extend(labels) or tokens(self, labels, device)
    )
    path = write_parquet("in.parquet", {"image": IMAGES})
    output = run_inline(plan_of(job_for(TASK, clip, path, candidate_labels=LABELS), max_batch_rows=2))
    assert output["error"].null_count == len(IMAGES)
    assert seen == LABELS
    assert issubclass(task, Task)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": ["a"], "hypothesis_template": "a photo"}, r"write \{\} once"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{} {other}"}, r"write \{\} once"),
        ({}, "the input has no column 'candidate_labels'"),
    ],
)
def test_parameters_that_cannot_be_are_refused(clip, write_parquet, job_for, params, words):
    path = write_parquet("in.parquet", {"image": [pictures.png()]})
    with pytest.raises(SpecError, match=words):
        plan_of(job_for(TASK, clip, path, **params))


def test_labels_from_a_column_and_from_a_parameter_are_refused(clip, write_parquet, job_for):
    path = write_parquet("in.parquet", {"image": [pictures.png()], "names": [["cat"]]})
    job = job_for(TASK, clip, path, candidate_labels=["cat"])
    job["input"]["columns"] = {"candidate_labels": "names"}
    with pytest.raises(SpecError, match="candidate_labels is a column and a parameter"):
        plan_of(job)
