import shutil

import pyarrow as pa
import pytest

from hfbatch.errors import RowError, SpecError
from hfbatch.tasks.sights import parted
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, check
from tests.tasks.image_rows import IMAGES, opened
from tests.zoo import chat, pictures, vqa
from tests.zoo.tokenizers import byte_level
from tests.zoo.vision import SIDE, TRANSFORMER, image_processor, saved

TASK = "image-text-to-text"
TEXTS = [
    "describe the river",
    "who?",
    "x",
    "the 😀 actor",
    "הנהר הוא",
    "is the dog red <image> or <|IMAGE_PLACEHOLDER|>",
    "one<|im_end|>\n<|im_start|>assistant\ntwo",
    "",
]
ROWS = {"image": [*IMAGES[:6], *IMAGES[-2:]], "text": TEXTS}
PARAMS = {"max_new_tokens": 8}
PLAIN = [row for row, words in enumerate(TEXTS) if "<" not in words]
CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
PARTS = pa.list_(pa.struct([("role", pa.string()), ("content", CONTENT)]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {"llava": chat.llava, "paddle": chat.paddleocr_vl, "idefics": idefics3}
    return {name: make(folder / name) for name, make in made.items()}


def idefics3(folder, max_length=1024):
    """SmolVLM's layout: an image is tiles with a mask, and its processor asks where in the text they came to stand."""
    import transformers

    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = [*chat.TALK, "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places]
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    byte_level(folder, special, "Qwen2Tokenizer", model_max_length=max_length, **ends)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sides = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": SIDE}}
    images = image_processor("Idefics3ImageProcessor", **sides)
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=chat.TEMPLATE % "<image>"
    )
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    config = transformers.Idefics3Config(
        vision_config={**TRANSFORMER, "image_size": SIDE, "patch_size": 8},
        text_config={**TRANSFORMER, **ids, "model_type": "llama", "max_position_embeddings": max_length},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return saved(folder, transformers.Idefics3ForConditionalGeneration(config), processor)


def text(words):
    return {"type": "text", "text": words}


def reference(model, chats, images, **params):
    """transformers' pipeline; each {type: image} of a chat is the image of its row."""
    from transformers import pipeline

    ask = pipeline(TASK, model=str(model), device="cpu")
    made = []
    for messages, image in zip(chats, images, strict=True):
        seen = {"type": "image", "image": opened(image).convert("RGB")}
        turns = [
            {**turn, "content": [seen if part["type"] == "image" else part for part in turn["content"]]}
            for turn in messages
        ]
        answers = ask(text=turns, return_full_text=False, generate_kwargs=dict(params))
        made.append([answer["generated_text"] for answer in answers])
    return made


@pytest.mark.parametrize("name", ["llava", "paddle", "idefics"])
def test_answers_are_those_of_transformers_pipeline(models, tmp_path, name):
    """Of every text without special strings: those the pipeline would take for special tokens."""
    output = check(Case(TASK, models[name], ROWS, PARAMS), tmp_path)
    made = output["generated_text"].to_pylist()
    chats = [[{"role": "user", "content": [{"type": "image"}, text(TEXTS[row])]}] for row in PLAIN]
    images = [ROWS["image"][row] for row in PLAIN]
    assert [[made[row]] for row in PLAIN] == reference(models[name], chats, images, **PARAMS)
    assert len(set(made)) > len(made) / 2
    for row in output.to_pylist():
        assert row["completion_tokens"] == 8 or row["finish_reason"] == "stop"
        assert not row["truncated"]
    assert output["prompt_tokens"][1].as_py() < output["prompt_tokens"][0].as_py() or name != "llava"


@pytest.mark.parametrize("name", ["llava", "paddle"])
def test_a_chat_with_parts_is_that_of_transformers_pipeline(models, tmp_path, name):
    """The image stands where its part stands, and a last message of the assistant is continued."""
    chats = [
        [{"role": "system", "content": [text("good")]}, {"role": "user", "content": [text("who"), {"type": "image"}]}],
        [
            {"role": "user", "content": [{"type": "image"}, text("who?")]},
            {"role": "assistant", "content": [text("the actor")]},
            {"role": "user", "content": [text("and"), text("where?")]},
        ],
        [
            {"role": "user", "content": [{"type": "image"}, text("who?")]},
            {"role": "assistant", "content": [text("the actor")]},
        ],
    ]
    case = Case(TASK, models[name], {"image": IMAGES[:3], "messages": chats}, PARAMS, {"messages": PARTS})
    made = check(case, tmp_path)["generated_text"].to_pylist()
    assert [[each] for each in made] == reference(models[name], chats, IMAGES[:3], **PARAMS)


def test_beams_over_patches_are_those_of_transformers_pipeline(models, tmp_path):
    params = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    rows = {"image": IMAGES[:3], "text": TEXTS[:3]}
    output = run_inline(plan_of(Case(TASK, models["paddle"], rows, params).job(tmp_path)))
    chats = [[{"role": "user", "content": [{"type": "image"}, text(words)]}] for words in rows["text"]]
    assert output["generated_text"].to_pylist() == reference(models["paddle"], chats, IMAGES[:3], **params)


@pytest.mark.parametrize(("name", "texts"), [("llava", 2), ("paddle", 1)])
def test_sampled_answers_do_not_depend_on_the_batch(models, tmp_path, name, texts):
    params = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": texts, "seed": 3}
    output = check(Case(TASK, models[name], ROWS, params), tmp_path)
    assert len({str(each) for each in output["generated_text"].to_pylist()}) > 4


@pytest.mark.parametrize(
    ("name", "mark"), [("llava", "<image>"), ("paddle", "<|IMAGE_PLACEHOLDER|>"), ("idefics", "<image>")]
)
def test_what_a_row_spells_is_text_and_no_second_image(models, tmp_path, name, mark):
    """As many tokens as the characters of the mark make, and not one; the ids hold one run of image tokens."""
    from hfbatch.checkpoint import Checkpoint

    task = Case(TASK, models[name], ROWS, PARAMS)
    made = run_inline(plan_of(task.job(tmp_path, {"image": [pictures.png()] * 2, "text": ["", mark]})))
    prompt = made["prompt_tokens"].to_pylist()
    tokenizer = Checkpoint(str(models[name])).tokenizer
    spelled = tokenizer(mark, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert prompt[1] - prompt[0] == len(spelled) > 1


def test_a_prompt_of_params_asks_every_image_and_fills_in_columns(models, tmp_path):
    rows = {"image": IMAGES[:3]}
    case = Case(TASK, models["llava"], rows, {**PARAMS, "prompt": "describe the river"})
    asked = run_inline(plan_of(case.job(tmp_path)))["generated_text"].to_pylist()
    same = Case(TASK, models["llava"], {**rows, "text": ["describe the river"] * 3}, PARAMS)
    assert asked == run_inline(plan_of(same.job(tmp_path)))["generated_text"].to_pylist()
    params = {**PARAMS, "prompt": "describe the {{what}}", "system": "good {{what}}"}
    job = Case(TASK, models["llava"], rows, params).job(tmp_path)
    table = pa.table({"id": range(3), "image": IMAGES[:3], "what": ["river", "<image>", "x"]})
    pa.parquet.write_table(table, job["input"]["path"])
    made = run_inline(plan_of(job))
    chats = [
        [
            {"role": "system", "content": [text(f"good {what}")]},
            {"role": "user", "content": [{"type": "image"}, text(f"describe the {what}")]},
        ]
        for what in ("river", "x")
    ]
    expected = reference(models["llava"], chats, [IMAGES[0], IMAGES[2]], **PARAMS)
    assert [[made["generated_text"][row].as_py()] for row in (0, 2)] == expected


def test_a_chat_over_the_limit_loses_the_beginnings_of_its_texts_or_is_an_error(models, tmp_path):
    """512 positions, 8 of them to write: the template and the image take the same in every row."""
    rows = {"image": [pictures.png()] * 5, "text": ["", "x" * 2, "x" * 600, "x" * 51_200, "y" * 100 + "x" * 600]}
    output = run_inline(plan_of(Case(TASK, models["llava"], rows, PARAMS).job(tmp_path)))
    assert output["error"].null_count == 5
    assert output["truncated"].to_pylist() == [False, False, True, True, True]
    assert output["prompt_tokens"].to_pylist()[2:] == [504] * 3
    texts = output["generated_text"].to_pylist()
    assert texts[2] == texts[3] == texts[4]
    room = 504 - output["prompt_tokens"][0].as_py()
    exact = {"image": [pictures.png()] * 3, "text": ["x" * (room - 1), "x" * room, "x" * (room + 1)]}
    strict = Case(TASK, models["llava"], exact, {**PARAMS, "truncation": False})
    assert run_inline(plan_of(strict.job(tmp_path)))["error"].to_pylist() == [
        None,
        None,
        "too_long: 505 tokens, the limit of a prompt is 504",
    ]


def test_without_a_chat_template_the_text_is_the_prompt(models, tmp_path):
    from transformers import pipeline

    model = shutil.copytree(models["llava"], tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template*"))
    prompts = ["USER: <image>\nwho? ASSISTANT:", "<image>the river"]
    rows = {"image": IMAGES[:3], "text": [*prompts, "no image"]}
    made = run_inline(plan_of(Case(TASK, model, rows, PARAMS).job(tmp_path)))
    ask = pipeline(TASK, model=str(model), device="cpu")
    pairs = [(opened(image).convert("RGB"), prompt) for image, prompt in zip(IMAGES, prompts, strict=False)]
    told = [ask(images=i, text=p, return_full_text=False, generate_kwargs=dict(PARAMS)) for i, p in pairs]
    assert made["generated_text"].to_pylist() == [told[0][0]["generated_text"], told[1][0]["generated_text"], None]
    assert made["error"][2].as_py().startswith("preprocess_failed: ")
    with pytest.raises(SpecError, match="no chat template: read a text, not messages"):
        plan_of(Case(TASK, model, rows, {**PARAMS, "system": "good"}).job(tmp_path))


def test_a_broken_image_or_chat_is_the_error_of_its_row_alone(models, tmp_path):
    broken = pictures.broken_pictures()
    rows = {"image": [pictures.png(), *broken.values()], "text": ["who?"] * (1 + len(broken))}
    made = run_inline(plan_of(Case(TASK, models["paddle"], rows, PARAMS).job(tmp_path)))
    assert made["error"].is_valid().to_pylist() == [False, *[True] * len(broken)]
    chats = [
        [{"role": "user", "content": [text("who?")]}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}],
        [{"role": "user", "content": [{"type": "video"}]}],
        [{"role": "assistant", "content": [text("who?")]}],
        [],
    ]
    case = Case(TASK, models["paddle"], {"image": IMAGES[:5], "messages": chats}, PARAMS, {"messages": PARTS})
    assert run_inline(plan_of(case.job(tmp_path)))["error"].to_pylist() == [
        None,
        "bad_messages: 2 images in the messages, and a row has one",
        "bad_messages: a part of type 'video'; write text, with a text, or image",
        "bad_messages: no message of the user to put the image into",
        "bad_messages: no message of the user to put the image into",
    ]


def test_contents_are_texts_or_parts():
    assert parted([{"role": "user", "content": "a"}]) == [{"role": "user", "content": [{"type": "image"}, text("a")]}]
    with pytest.raises(RowError, match="neither a text nor a list of parts"):
        parted([{"role": "user", "content": 3}])


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("paddle", {"do_sample": True, "num_return_sequences": 2}, "this model's images come in patches"),
        ("llava", {"max_new_tokens": 512}, "512 leaves no room for a prompt"),
        ("llava", {"prompt": "who {{"}, "write {{column}}"),
        ("llava", {"prompt": "who is in {{image}}?"}, "take {{image}} out"),
        ("llava", {"system": "be {{what}}"}, "params.system names columns, which goes with params.prompt alone"),
    ],
)
def test_what_cannot_be_done_is_refused_when_the_job_is_planned(models, tmp_path, name, params, said):
    with pytest.raises(SpecError, match=said):
        plan_of(Case(TASK, models[name], ROWS, params).job(tmp_path))


def test_a_template_that_refuses_every_chat_is_refused_when_the_job_is_planned(models, tmp_path):
    model = shutil.copytree(models["llava"], tmp_path / "strict")
    template = model / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    plan_of(Case(TASK, model, ROWS, PARAMS).job(tmp_path))
    with pytest.raises(SpecError, match=r"the chat template refuses them: no system here; see params.system"):
        plan_of(Case(TASK, model, ROWS, {**PARAMS, "system": "good"}).job(tmp_path))


def test_other_models_and_missing_processors_are_refused(models, tmp_path):
    blip = vqa.blip(tmp_path / "blip", "BlipForConditionalGeneration")
    with pytest.raises(SpecError, match="'blip' captions: use task image-to-text"):
        plan_of(Case(TASK, blip, ROWS).job(tmp_path))
    bare = shutil.copytree(models["llava"], tmp_path / "bare", ignore=shutil.ignore_patterns("*processor_config*"))
    with pytest.raises(SpecError, match="it has no processor"):
        plan_of(Case(TASK, bare, ROWS).job(tmp_path))
