import pytest
from transformers import pipeline

from hfbatch import tasks
from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.tasks.image_rows import IMAGES, opened
from tests.zoo import pictures, vision


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    return vision.detr(tmp_path_factory.mktemp("models") / "detr")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return vision.yolos(tmp_path_factory.mktemp("models") / "yolos")


@pytest.mark.parametrize("params", [{}, {"threshold": 0.0}], ids=str)
@pytest.mark.parametrize("model", ["detr", "other"])
def test_values_equal_transformers_pipeline(request, tmp_path, model, params):
    model = request.getfixturevalue(model)
    output = check(Case("object-detection", model, {"image": IMAGES[:10]}, params), tmp_path)
    reference = pipeline("object-detection", model=str(model), device="cpu")
    expected = [reference(opened(image), **{"threshold": 0.5, **params}) for image in IMAGES[:10]]
    assert_close(output["objects"].to_pylist(), expected)
    found = [len(objects) for objects in expected]
    assert len(set(found)) > 1 or params == {"threshold": 0.0}, "a threshold that lets all through tests nothing"
    assert len({object["label"] for objects in expected for object in objects}) > 1


def test_boxes_are_those_of_the_upright_image(detr, write_parquet, job_for):
    upright = pictures.picture(3, (57, 33))
    lying = pictures.jpeg(3, (57, 33), orientation=6)
    output = run_inline(
        plan_of(job_for("object-detection", detr, write_parquet("in.parquet", {"image": [lying]}), threshold=0))
    )
    boxes = [found["box"] for found in output["objects"][0].as_py()]
    assert upright.size == (57, 33)
    assert max(box["ymax"] for box in boxes) > 33, "the image stands: it is 33 wide and 57 high"


def test_images_of_several_sizes_share_no_batch_and_nothing_is_padded(detr, write_parquet, job_for, monkeypatch):
    images = [pictures.png(seed, size) for seed, size in enumerate([(64, 64), (64, 32), (64, 64), (32, 64), (64, 32)])]
    plan = plan_of(job_for("object-detection", detr, write_parquet("in.parquet", {"image": images})))
    task, shapes = tasks.find("object-detection"), []
    forward = task.forward

    def watched(self, model, batch):
        assert bool(batch.inputs["pixel_mask"].all())
        shapes.append(tuple(batch.inputs["pixel_values"].shape))
        return forward(self, model, batch)

    monkeypatch.setattr(task, "forward", watched)
    assert run_inline(plan)["error"].null_count == 5
    assert sorted(shapes) == [(1, 3, 96, 48), (2, 3, 48, 96), (2, 3, 64, 64)]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "high"])
def test_a_threshold_that_is_no_probability_is_refused(detr, write_parquet, job_for, threshold):
    path = write_parquet("in.parquet", {"image": [pictures.png()]})
    with pytest.raises(SpecError, match="threshold"):
        plan_of(job_for("object-detection", detr, path, threshold=threshold))


def test_a_model_of_another_kind_is_refused(tmp_path, write_parquet, job_for):
    path = write_parquet("in.parquet", {"image": [pictures.png()]})
    classifier = vision.vit(tmp_path / "vit")
    with pytest.raises(SpecError, match="transformers has no AutoModelForObjectDetection for models of type 'vit'"):
        plan_of(job_for("object-detection", classifier, path))
    panoptic = vision.detr(tmp_path / "panoptic", "DetrForSegmentation")
    with pytest.raises(SpecError, match="it is a DetrForSegmentation, and this takes a DetrForObjectDetection"):
        plan_of(job_for("object-detection", panoptic, path))
