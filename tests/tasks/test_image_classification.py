import shutil

import pytest
from transformers import pipeline

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.tasks.image_rows import IMAGES, opened
from tests.zoo import pictures, vision


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return vision.vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    return vision.convnext(tmp_path_factory.mktemp("models") / "convnext")


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 1},
        {"top_k": 2, "function_to_apply": "sigmoid"},
        {"top_k": None, "function_to_apply": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["vit", "conv"])
def test_values_equal_transformers_pipeline(request, tmp_path, model, params):
    model = request.getfixturevalue(model)
    output = check(Case("image-classification", model, {"image": IMAGES}, params), tmp_path)
    reference = pipeline("image-classification", model=str(model), device="cpu")
    expected = [reference(opened(image), **{"top_k": 5, **params}) for image in IMAGES]
    if params.get("top_k") == 1:
        made = [[{"label": row["label"], "score": row["score"]}] for row in output.to_pylist()]
    else:
        made = output["labels"].to_pylist()
    assert_close(made, expected)
    assert len({row[0]["label"] for row in expected}) > 1, "a model that always says the same tests nothing"


@pytest.mark.parametrize("config", [{"problem_type": "regression"}, {"problem_type": "multi_label_classification"}])
def test_the_default_function_is_the_checkpoints_own(tmp_path, config, write_parquet, job_for):
    model, images = vision.vit(tmp_path / "model", **config), pictures.pictures(6)
    output = run_inline(plan_of(job_for("image-classification", model, write_parquet("in.parquet", {"image": images}))))
    reference = pipeline("image-classification", model=str(model), device="cpu")
    assert_close(output["labels"].to_pylist(), [reference(opened(image)) for image in images])


def test_an_image_that_cannot_be_read_is_an_error_of_its_row_alone(vit, write_parquet, job_for):
    broken = pictures.broken_pictures()
    images = [pictures.png(1), *broken.values(), pictures.png(2)]
    path = write_parquet("in.parquet", {"image": images, "what": ["good", *broken, "good"]})
    output = run_inline(plan_of(job_for("image-classification", vit, path)))
    codes = {row["what"]: (row["error"] or "fine").partition(":")[0] for row in output.to_pylist()}
    assert codes == {
        "good": "fine",
        "empty": "empty_input",
        "text": "bad_image",
        "truncated": "bad_image",
        "header only": "bad_image",
        "flipped bit": "bad_image",
        "bomb": "image_too_large",
        "sound": "bad_image",
    }
    assert [row is None for row in output["labels"].to_pylist()] == [False, *[True] * len(broken), False]


@pytest.mark.parametrize(
    ("params", "words"), [({"top_k": 0}, "top_k"), ({"function_to_apply": "relu"}, "function_to_apply")]
)
def test_a_parameter_that_cannot_be_is_refused(vit, write_parquet, job_for, params, words):
    path = write_parquet("in.parquet", {"image": [pictures.png()]})
    with pytest.raises(SpecError, match=words):
        plan_of(job_for("image-classification", vit, path, **params))


def test_a_model_without_the_head_or_the_image_processor_is_refused(tmp_path, vit, write_parquet, job_for):
    path = write_parquet("in.parquet", {"image": [pictures.png()]})
    base = vision.vit(tmp_path / "base", "ViTModel")
    with pytest.raises(SpecError, match=r"it is a ViTModel, and this takes a ViTForImageClassification"):
        plan_of(job_for("image-classification", base, path))
    bare = shutil.copytree(vit, tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(SpecError, match=r"it has no image_processor \(preprocessor_config.json\)"):
        plan_of(job_for("image-classification", bare, path))
