import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoImageProcessor, AutoModel, pipeline

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check
from tests.tasks.image_rows import IMAGES, opened
from tests.zoo import media, pictures, vision

TASK = "image-feature-extraction"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return vision.vit(tmp_path_factory.mktemp("models") / "vit", "ViTModel")


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    return vision.convnext(tmp_path_factory.mktemp("models") / "convnext", "ConvNextModel")


def references(model, images, **params):
    reference = pipeline(TASK, model=str(model), device="cpu")
    return [np.array(reference(opened(image), **params)[0]) for image in images]


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return vision.dinov2(tmp_path_factory.mktemp("models") / "dinov2")


@pytest.mark.parametrize("model", ["vit", "dino"])
def test_tokens_equal_transformers_pipeline(request, tmp_path, model):
    model = request.getfixturevalue(model)
    output = check(Case(TASK, model, {"image": IMAGES}), tmp_path)
    made = output["embedding"].to_pylist()
    assert_close(made, [each.tolist() for each in references(model, IMAGES)])
    assert output.schema.field("embedding").type.value_type.list_size == 32
    assert np.shape(made[0]) == (17, 32)
    assert not np.allclose(made[0], made[1], atol=1e-2)


def test_positions_of_a_convolutional_network_are_transformers_channels_turned(conv, tmp_path):
    output = check(Case(TASK, conv, {"image": IMAGES[:6]}), tmp_path)
    expected = [each.reshape(32, -1).T.tolist() for each in references(conv, IMAGES[:6])]
    assert_close(output["embedding"].to_pylist(), expected)


@pytest.mark.parametrize("model", ["vit", "conv"])
def test_the_models_own_pooler_equals_pool_true(request, tmp_path, model):
    model = request.getfixturevalue(model)
    output = check(Case(TASK, model, {"image": IMAGES}, {"pooling": "pooler"}), tmp_path)
    assert_close(output["embedding"].to_pylist(), [each.tolist() for each in references(model, IMAGES, pool=True)])
    assert pa.types.is_fixed_size_list(output.schema.field("embedding").type)


def test_pooled_and_scaled_vectors_are_those_of_the_tokens(vit, write_parquet, job_for):
    path = write_parquet("in.parquet", {"image": IMAGES})
    expected = references(vit, IMAGES)
    for pooling, pooled in (
        ("cls", [each[0] for each in expected]),
        ("mean", [each.mean(axis=0) for each in expected]),
    ):
        plan = plan_of(job_for(TASK, vit, path, pooling=pooling, normalize=True))
        made = run_inline(plan)["embedding"].to_pylist()
        assert_close(made, [(each / np.linalg.norm(each)).tolist() for each in pooled])


def test_a_clip_gives_its_image_embedding(tmp_path):
    import torch

    clip = media.clip(tmp_path / "clip")
    output = check(Case(TASK, clip, {"image": IMAGES[:8]}, {"pooling": "pooler"}), tmp_path)
    model, processor = AutoModel.from_pretrained(clip), AutoImageProcessor.from_pretrained(clip)
    with torch.inference_mode():
        images = [opened(image).convert("RGB") for image in IMAGES[:8]]
        found = [model.get_image_features(**processor(image, return_tensors="pt")) for image in images]
    assert_close(output["embedding"].to_pylist(), [each.pooler_output[0].tolist() for each in found])


def test_a_pooling_that_the_model_cannot_give_is_refused_with_one_that_it_can(tmp_path, conv, write_parquet, job_for):
    path = write_parquet("in.parquet", {"image": [pictures.png()]})
    with pytest.raises(SpecError, match=r"no class token: write pooling: pooler or mean"):
        plan_of(job_for(TASK, conv, path, pooling="cls"))
    with pytest.raises(SpecError, match=r"two towers.*write pooling: pooler"):
        plan_of(job_for(TASK, media.clip(tmp_path / "clip"), path))
    with pytest.raises(SpecError, match="pool: "):
        plan_of(job_for(TASK, conv, path, pool=True))


def test_a_pooler_that_the_checkpoint_lacks_is_not_made_up(tmp_path, write_parquet, job_for):
    bare = vision.vit(tmp_path / "bare", "ViTModel", pooler=False)
    path = write_parquet("in.parquet", {"image": IMAGES[:2]})
    with pytest.raises(SpecError, match=r"pooler\.dense"):
        run_inline(plan_of(job_for(TASK, bare, path, pooling="pooler")))
    made = run_inline(plan_of(job_for(TASK, bare, path, pooling="cls")))
    assert made["error"].null_count == 2
