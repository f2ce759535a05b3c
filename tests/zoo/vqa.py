"""Checkpoints that answer questions about images, the same under transformers 4.57 and 5."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import save
from tests.zoo.text import ENCODER
from tests.zoo.tokenizers import wordpiece
from tests.zoo.vision import SIDE, image_processor, saved, square

ANSWERS = {0: "yes", 1: "no", 2: "two", 3: "red", 4: "a dog"}


def vilt(folder: Path, head: str = "ViltForQuestionAnswering", max_length: int = 40, **config) -> Path:
    """ViLT, which classifies: question and patches in one sequence; images keep their proportions."""
    import transformers

    size = wordpiece(folder, model_max_length=max_length)
    image_processor("ViltImageProcessor", size={"shortest_edge": 64}, size_divisor=16).save_pretrained(folder)
    names = {"id2label": ANSWERS, "label2id": {name: i for i, name in ANSWERS.items()}}
    shape = {**ENCODER, **names, "vocab_size": size, "max_position_embeddings": max_length}
    shape |= {"image_size": 64, "patch_size": 16, "max_image_length": -1}
    return save(folder, head, transformers.ViltConfig(**{**shape, **config}))


def blip(folder: Path, head: str = "BlipForQuestionAnswering", max_length: int = 40, **config) -> Path:
    """BLIP: answers, captions (`BlipForConditionalGeneration`) and matches (`BlipForImageTextRetrieval`).

    As in the real one the decoder's first token is one past the tokenizer's vocabulary, [SEP] is the end, and there is
    no generation config; 4.57's pipelines write up to 256 tokens then, hence the positions.
    """
    import transformers

    names = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": max_length}
    size = wordpiece(folder, **names)
    ids = {"bos_token_id": size, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    shape = {"vocab_size": size + 2, "encoder_hidden_size": 32, "projection_dim": 32}
    text = {**ENCODER, **ids, **shape, "max_position_embeddings": 320}
    sight = {**ENCODER, "image_size": SIDE, "patch_size": 8}
    made = transformers.BlipConfig(text_config=text, vision_config=sight, projection_dim=32, **config)
    model = getattr(transformers, head)(made)

    def bend(model):
        if hasattr(model, "text_decoder"):
            model.text_decoder.cls.predictions.bias[ids["eos_token_id"]] += 3.5  # so that some texts end
        for name, weight in model.named_parameters():  # so that a picture counts
            if "crossattention" in name:
                weight.mul_(6 if name.startswith("text_decoder") else 1.5)

    times = {"patch_embedding": 3}
    return saved(folder, model, image_processor("BlipImageProcessor", size=square()), times=times, bend=bend)
