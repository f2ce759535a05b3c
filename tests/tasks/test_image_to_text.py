import pytest

from hfbatch.errors import SpecError
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, check
from tests.tasks.image_rows import IMAGES, opened
from tests.zoo import chat, media, pictures, vision, vqa

TASK = "image-to-text"
ROWS = {"image": IMAGES[:9]}
PARAMS = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    blip = vqa.blip(folder / "blip", "BlipForConditionalGeneration")
    git, vit = media.git(folder / "git"), media.vision_encoder_decoder(folder / "vit-gpt2")
    return {"blip": blip, "git": git, "vit-gpt2": vit}


def reference(model, images, prompt=None, **params):
    """What transformers 4.57's pipeline did, without it: the image processor, model.generate, the tokenizer."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    looks, words = AutoImageProcessor.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    writer = AutoModelForImageTextToText.from_pretrained(model).eval()
    made = []
    for image in images:
        inputs = looks(images=opened(image).convert("RGB"), return_tensors="pt")
        if prompt is not None and writer.config.model_type == "git":
            ids = [words.cls_token_id, *words(prompt, add_special_tokens=False)["input_ids"]]
            inputs["input_ids"] = torch.tensor([ids])
        elif prompt is not None:
            inputs.update(words(prompt, return_tensors="pt", return_token_type_ids=False))
        made.append([words.decode(ids, skip_special_tokens=True) for ids in writer.generate(**inputs, **params)])
    return made


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("blip", PARAMS),
        ("blip", {**PARAMS, "prompt": "the river of"}),
        ("blip", {**PARAMS, "num_beams": 3, "num_return_sequences": 2}),
        ("git", PARAMS),
        ("git", {**PARAMS, "prompt": "the river of"}),
        ("vit-gpt2", {}),
        ("vit-gpt2", {"num_beams": 2, "no_repeat_ngram_size": 2, "max_new_tokens": 6}),
    ],
    ids=str,
)
def test_captions_are_those_of_transformers(models, tmp_path, name, params):
    output = check(Case(TASK, models[name], ROWS, params), tmp_path)
    made = [row if isinstance(row, list) else [row] for row in output["generated_text"].to_pylist()]
    assert made == reference(models[name], ROWS["image"], **params)
    assert len({str(row) for row in made}) > 1


@pytest.mark.parametrize("name", ["git", "vit-gpt2"])
def test_sampled_captions_do_not_depend_on_the_batch(models, tmp_path, name):
    params = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 2, "seed": 7}
    output = check(Case(TASK, models[name], ROWS, params), tmp_path)
    texts = output["generated_text"].to_pylist()
    assert all(len(row) == 2 for row in texts)
    assert len({text for row in texts for text in row}) > len(texts)


def test_a_caption_ends_before_a_stop_string_and_keeps_the_prompt(models, tmp_path):
    whole = run_inline(plan_of(Case(TASK, models["git"], ROWS, {**PARAMS, "prompt": "the river"}).job(tmp_path)))
    full = whole["generated_text"].to_pylist()
    word = full[0].removeprefix("the river").split()[1]
    params = {**PARAMS, "prompt": "the river", "stop": f" {word}"}
    cut = run_inline(plan_of(Case(TASK, models["git"], ROWS, params).job(tmp_path)))["generated_text"].to_pylist()
    behind = [text.removeprefix("the river") for text in full]
    assert cut == ["the river" + text.split(f" {word}")[0] for text in behind]
    assert cut != full


def test_without_a_length_no_model_writes_past_its_positions(models, tmp_path):
    """4.57 failed there: 256 tokens, and GIT has 40 positions here."""
    output = run_inline(plan_of(Case(TASK, models["git"], {"image": IMAGES[:2]}).job(tmp_path)))
    assert output["error"].null_count == 2
    assert all(output["generated_text"].to_pylist())


def test_a_broken_image_is_the_error_of_its_row_alone(models, tmp_path):
    broken = pictures.broken_pictures()
    rows = {"image": [pictures.png(), *broken.values()]}
    made = run_inline(plan_of(Case(TASK, models["vit-gpt2"], rows).job(tmp_path)))
    assert made["error"].is_valid().to_pylist() == [False, *[True] * len(broken)]


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("vit-gpt2", {"prompt": "a"}, "a vision-encoder-decoder takes none"),
        ("git", {"max_new_tokens": 40}, "positions for 39 new tokens"),
        ("blip", {"prompt": "the river", "stop": "river"}, "a stop string is in params.prompt"),
        ("blip", {"do_sample": True, "num_beams": 2}, "do not go together"),
    ],
)
def test_what_cannot_be_done_is_refused_when_the_job_is_planned(models, tmp_path, name, params, said):
    with pytest.raises(SpecError, match=said):
        plan_of(Case(TASK, models[name], ROWS, params).job(tmp_path))


def test_other_models_are_refused(tmp_path):
    with pytest.raises(SpecError, match="'llava' wants a text beside the image: use task image-text-to-text"):
        plan_of(Case(TASK, chat.llava(tmp_path / "llava"), ROWS).job(tmp_path))
    with pytest.raises(SpecError, match="no AutoModelForImageTextToText for models of type 'vit'"):
        plan_of(Case(TASK, vision.vit(tmp_path / "vit"), ROWS).job(tmp_path))
    with pytest.raises(SpecError, match="it is a BlipForQuestionAnswering, and this takes a BlipForConditional"):
        plan_of(Case(TASK, vqa.blip(tmp_path / "blip"), ROWS).job(tmp_path))
