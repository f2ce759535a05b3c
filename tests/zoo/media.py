"""Tiny seeded checkpoints that read an image beside text, with the processor files of real ones."""

from __future__ import annotations

from pathlib import Path

from tests.models import WORDS, wordpiece
from tests.zoo.vision import HIDDEN, SIDE, TRANSFORMER, configured, end_in_time, image_processor, saved, square

CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def clip_tokenizer(max_length: int = 32):
    """CLIP's: byte-level BPE with `</w>` at the end of a word; <|endoftext|> is end, pad and unknown in one."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys([*WORDS, *"photo picture this cat dog red fox".split()]):
        letters = [*word[:-1], f"{word[-1]}</w>"]
        merges |= {("".join(letters[:i]), letter): None for i, letter in enumerate(letters) if i}
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), *CLIP_SPECIAL]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=max_length)


def clip(folder: Path, head: str = "CLIPModel", max_length: int = 32, **config) -> Path:
    """CLIP: the short side to 32 pixels, then the middle; texts end at the token of the highest id, as in the real one.

    `CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection` are its halves.
    """
    import transformers

    tokenizer = clip_tokenizer(max_length)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**TRANSFORMER, "vocab_size": len(tokenizer), "max_position_embeddings": max_length, **ends}
    sight = {**TRANSFORMER, "image_size": SIDE, "patch_size": 8}
    half = {"CLIPVisionModelWithProjection": "vision_config", "CLIPTextModelWithProjection": "text_config"}.get(head)
    made = configured(
        "CLIPConfig",
        config,
        text_config={**text, "projection_dim": 16},
        vision_config={**sight, "projection_dim": 16},
        projection_dim=16,
    )
    model = getattr(transformers, head)(getattr(made, half) if half else made)
    images = image_processor("CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=square())
    return saved(folder, model, images, tokenizer)


def siglip(folder: Path, head: str = "SiglipModel", max_length: int = 64, **config) -> Path:
    """SigLIP: a sigmoid for each pair; texts are filled up to 64 tokens by the pipeline, without an attention mask."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    from tests.zoo.tokenizers import pieces

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces()]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=max_length, model_input_names=["input_ids"], **marks
    )
    ids = {"vocab_size": len(vocabulary), "max_position_embeddings": max_length, "pad_token_id": 0, "eos_token_id": 1}
    both = configured(
        "SiglipConfig",
        config,
        text_config={**TRANSFORMER, **ids, "bos_token_id": 1},
        vision_config={**TRANSFORMER, "image_size": SIDE, "patch_size": 8},
    )
    model = getattr(transformers, head)(both)
    return saved(folder, model, image_processor("SiglipImageProcessor", size=square()), tokenizer)


def vision_encoder_decoder(folder: Path, max_length: int = 40, **config) -> Path:
    """A ViT that captions through a GPT-2: the tokenizer of one, the image processor of the other."""
    import transformers

    from tests.zoo.tokenizers import byte_level

    end = {f"{name}_token": "<|endoftext|>" for name in ("bos", "eos", "unk", "pad")}
    size = byte_level(folder, ["<|endoftext|>"], "GPT2Tokenizer", model_max_length=max_length, **end)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shape = {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": max_length, "vocab_size": size}
    made = transformers.VisionEncoderDecoderConfig(
        encoder=transformers.ViTConfig(**TRANSFORMER, image_size=SIDE, patch_size=8).to_dict(),
        decoder=transformers.GPT2Config(**shape, **ids, is_decoder=True, add_cross_attention=True).to_dict(),
        decoder_start_token_id=0,
        **{**ids, **config},
    )
    model = transformers.VisionEncoderDecoderModel(made)
    model.generation_config = transformers.GenerationConfig(
        **ids, decoder_start_token_id=0, max_length=16, begin_suppress_tokens=[0]
    )

    def bend(model):
        texts = model.decoder.transformer
        end_in_time(texts.wte.weight, texts.wpe.weight, end=0)

    times = {"wpe": 2, "crossattention.c_proj.weight": 3}
    return saved(folder, model, image_processor("ViTImageProcessor", size=square()), times=times, bend=bend)


def git(folder: Path, max_length: int = 40, **config) -> Path:
    """GIT: image tokens stand before the text in one decoder; a caption or, after a question, an answer."""
    import transformers

    wordpiece(folder, max_length)
    names = ["input_ids", "attention_mask"]  # the model knows no segments
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_input_names=names)
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    made = configured(
        "GitConfig",
        config,
        vision_config={**TRANSFORMER, "image_size": SIDE, "patch_size": 8},
        **TRANSFORMER,
        **ids,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
    )
    images = image_processor("CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=square())
    return saved(folder, transformers.GitForCausalLM(made), images, tokenizer)


def owlvit(folder: Path, max_length: int = 16, **config) -> Path:
    """OWL-ViT: a box for each patch, scored against each text; texts are filled up to `max_length`."""
    import transformers

    tokenizer = clip_tokenizer(max_length)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made = configured(
        "OwlViTConfig",
        config,
        text_config={**TRANSFORMER, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": max_length},
        vision_config={**TRANSFORMER, "image_size": SIDE, "patch_size": 8},
        projection_dim=HIDDEN,
    )
    images = image_processor("OwlViTImageProcessor", size=square(), do_center_crop=False)
    times = {"box_head": 0.5}  # boxes of some width
    return saved(folder, transformers.OwlViTForObjectDetection(made), images, tokenizer, times=times)
