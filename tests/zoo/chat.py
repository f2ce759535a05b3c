"""Tiny seeded models that talk about images, with the chat templates of real ones: two ways to lay out an image."""

from __future__ import annotations

from pathlib import Path

from tests.zoo.tokenizers import byte_level
from tests.zoo.vision import SIDE, TRANSFORMER, configured, image_processor, saved, square

TALK = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{%% for message in messages %%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%% if message.content is string %%}{{ message.content }}{%% else %%}"
    "{%% for part in message.content %%}{%% if part.type == 'image' %%}{{ '%s' }}"
    "{%% else %%}{{ part.text }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}{{ '<|im_end|>\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)


def _tokenizer(folder: Path, special: list[str], max_length: int, **names):
    import transformers

    names |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    byte_level(folder, [*TALK, *special], "Qwen2Tokenizer", model_max_length=max_length, **names)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _text(tokenizer, max_length: int) -> dict:
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "num_key_value_heads": 2}
    return {**TRANSFORMER, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": max_length}


def _end(model) -> None:
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, [2, 0]
    model.lm_head.weight[2] *= 1.2  # some answers end early


def llava(folder: Path, max_length: int = 512, **config) -> Path:
    """LLaVA 1.5: a CLIP tower before a Llama; each image is one (3, 32, 32) of pixel_values and 16 tokens."""
    import transformers

    tokenizer = _tokenizer(folder, ["<image>"], max_length)
    sight = transformers.CLIPVisionConfig(**TRANSFORMER, image_size=SIDE, patch_size=8)
    made = configured(
        "LlavaConfig",
        config,
        vision_config=sight,
        text_config=transformers.LlamaConfig(**_text(tokenizer, max_length)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = transformers.LlavaProcessor(
        image_processor("CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=square()),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE % "<image>\\n",
    )
    return saved(folder, transformers.LlavaForConditionalGeneration(made), processor, bend=_end)


def paddleocr_vl(folder: Path, max_length: int = 512, **config) -> Path:
    """PaddleOCR-VL, Qwen2-VL's layout: patches of all images in one (patches, 3, 8, 8), grids in image_grid_thw.

    An image keeps its proportions, so its tokens are as many as it is large: 4 to 36. Qwen's own processors load with
    torchvision only, for the sake of videos; this one has none.
    """
    import transformers

    marks = {"image": "<|IMAGE_PLACEHOLDER|>", "vision_start": "<|IMAGE_START|>", "vision_end": "<|IMAGE_END|>"}
    named = {"image_token": marks["image"]}
    tokenizer = _tokenizer(folder, list(marks.values()), max_length, extra_special_tokens=named)
    made = configured(
        "PaddleOCRVLConfig",
        config,
        text_config={
            **_text(tokenizer, max_length),
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={**TRANSFORMER, "image_size": 64, "patch_size": 8, "spatial_merge_size": 2},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    images = image_processor(
        "PaddleOCRVLImageProcessor", patch_size=8, merge_size=2, size={"shortest_edge": 1024, "longest_edge": 9216}
    )
    template = TEMPLATE % (marks["vision_start"] + marks["image"] + marks["vision_end"])
    processor = transformers.PaddleOCRVLProcessor(images, tokenizer, chat_template=template)
    return saved(folder, transformers.PaddleOCRVLForConditionalGeneration(made), processor, bend=_end)
