"""Text families: `name(folder, head=..., max_length=..., **config)` saves a checkpoint and gives its folder back.

A generation_config's max_length is never 20: 4.57's pipelines take that for unset and write 256 tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.zoo import HEADS, HIDDEN, LAYERS, WIDE, save
from tests.zoo.tokenizers import BRACKETS, CHATML, byte_level, sentencepiece, unigram, wordpiece

SE = True
ANGLES = {
    **{"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
ENCODER = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDE,
}
ENCODER_DECODER = {
    "d_model": HIDDEN,
    **{f"{side}_layers": LAYERS for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": HEADS for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": WIDE for side in ("encoder", "decoder")},
}


def bert(folder: Path, head: str = "BertForSequenceClassification", max_length: int = 64, **config) -> Path:
    """WordPiece, segments; tests/models.py with weights that do not depend on versions."""
    import transformers

    size = wordpiece(folder, model_max_length=max_length)
    made = transformers.BertConfig(**{**ENCODER, "vocab_size": size, "max_position_embeddings": max_length, **config})
    return save(folder, head, made)


def distilbert(folder: Path, head: str = "DistilBertForSequenceClassification", max_length: int = 64, **config) -> Path:
    """WordPiece without segments."""
    import transformers

    names = {"model_max_length": max_length, "model_input_names": ["input_ids", "attention_mask"]}
    size = wordpiece(folder, "DistilBertTokenizer", **names)
    shape = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": WIDE}
    shape |= {"vocab_size": size, "max_position_embeddings": max_length}
    return save(folder, head, transformers.DistilBertConfig(**{**shape, **config}))


def roberta(folder: Path, head: str = "RobertaForSequenceClassification", max_length: int = 64, **config) -> Path:
    """Byte-level BPE, no segments, positions that start at padding_idx + 1; `max_length` counts usable positions."""
    import transformers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    size = byte_level(folder, special, "RobertaTokenizer", model_max_length=max_length, **ANGLES)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1}
    shape = {**ENCODER, **ids, "vocab_size": size, "max_position_embeddings": max_length + 2}
    return save(folder, head, transformers.RobertaConfig(**{**shape, **config}))


def xlm_roberta(
    folder: Path, head: str = "XLMRobertaForSequenceClassification", max_length: int = 64, **config
) -> Path:
    """Unigram pieces on RoBERTa's layout."""
    import transformers

    around = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    special, options = ["<s>", "<pad>", "</s>", "<unk>"], {"model_max_length": max_length, **ANGLES}
    size = unigram(folder, special, "XLMRobertaTokenizer", around, ("<mask>",), **options)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1}
    shape = {**ENCODER, **ids, "vocab_size": size, "max_position_embeddings": max_length + 2}
    return save(folder, head, transformers.XLMRobertaConfig(**{**shape, **config}))


def deberta_v2(folder: Path, head: str = "DebertaV2ForSequenceClassification", max_length: int = 64, **config) -> Path:
    """Unigram pieces and relative positions in buckets, as DeBERTa v3: no position embeddings, no segments."""
    import transformers

    around = ("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]", "model_max_length": max_length, "unk_id": 3}
    size = unigram(folder, special, "DebertaV2Tokenizer", around, ("[MASK]",), **ends, **BRACKETS)
    relative = {"relative_attention": True, "position_buckets": 16, "max_relative_positions": -1}
    relative |= {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    relative |= {"position_biased_input": False, "type_vocab_size": 0, "max_position_embeddings": max_length}
    made = transformers.DebertaV2Config(**{**ENCODER, **relative, "vocab_size": size, "pad_token_id": 0, **config})
    return save(folder, head, made)


def modernbert(folder: Path, head: str = "ModernBertForSequenceClassification", max_length: int = 64, **config) -> Path:
    """Byte-level BPE, rotary positions; its second layer attends only 8 tokens to either side."""
    import transformers

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    inputs = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": max_length}
    around = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")
    size = byte_level(folder, special, "PreTrainedTokenizerFast", around, **inputs, **BRACKETS)
    ids = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 3}
    shape = {**ENCODER, **ids, "vocab_size": size, "max_position_embeddings": max_length, "local_attention": 16}
    return save(folder, head, transformers.ModernBertConfig(**{**shape, **config}))


def t5(folder: Path, head: str = "T5ForConditionalGeneration", max_length: int = 64, **config) -> Path:
    """Unigram pieces, relative positions; prefixes for summarization and translation_en_to_de, as the real one."""
    import transformers

    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": max_length}
    extra = [f"<extra_id_{i}>" for i in range(10)]
    names |= {"extra_ids": len(extra), "additional_special_tokens": extra}
    special, around = ["<pad>", "</s>", "<unk>"], ("$A </s>", "$A </s> $B </s>")
    size = unigram(folder, special, "T5Tokenizer", around, tuple(extra[::-1]), **names)
    search = {"early_stopping": True, "num_beams": 4}
    tasks = {
        "summarization": {**search, "max_length": 24, "min_length": 6, "length_penalty": 2.0, "prefix": "summarize: "},
        "translation_en_to_de": {**search, "max_length": 22, "prefix": "translate English to German: "},
    }
    shape = {"d_model": HIDDEN, "d_kv": HIDDEN // HEADS, "d_ff": WIDE, "num_layers": LAYERS, "num_heads": HEADS}
    shape |= {"vocab_size": size, "relative_attention_num_buckets": 8, "n_positions": max_length}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    made = transformers.T5Config(**{**shape, **ids, "task_specific_params": tasks, **config})
    return save(folder, head, made, generation=ids, scale=0.8, ending=1.5)


def bart(folder: Path, head: str = "BartForConditionalGeneration", max_length: int = 64, **config) -> Path:
    """Byte-level BPE, learned positions; generates by beams between a forced first and last token, as for summaries."""
    import transformers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    size = byte_level(folder, special, "BartTokenizer", model_max_length=max_length, **ANGLES)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    shape = {**ENCODER_DECODER, **ids, "vocab_size": size, "max_position_embeddings": max_length}
    search = {"num_beams": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3}
    search |= {"max_length": 24, "min_length": 4, "length_penalty": 2.0, "early_stopping": True}
    return save(
        folder, head, transformers.BartConfig(**{**shape, **config}), generation={**ids, **search}, scale=0.3, ending=6
    )


def marian(folder: Path, head: str = "MarianMTModel", max_length: int = 64, **config) -> Path:
    """SentencePiece files with their own ids, sinusoidal positions; decoding starts at the forbidden padding token."""
    import transformers

    size = sentencepiece(folder)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "source_lang": "en", "target_lang": "de"}
    names |= {"tokenizer_class": "MarianTokenizer", "model_max_length": max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1))
    ids = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    shape = {**ENCODER_DECODER, **ids, "vocab_size": size, "max_position_embeddings": max_length}
    shape |= {"scale_embedding": True, "share_encoder_decoder_embeddings": True}
    search = {"num_beams": 2, "max_length": 22, "bad_words_ids": [[size - 1]], "forced_eos_token_id": 0}
    return save(
        folder,
        head,
        transformers.MarianConfig(**{**shape, **config}),
        generation={**ids, **search},
        scale=0.6,
        ending=10,
    )


def mbart(folder: Path, head: str = "MBartForConditionalGeneration", max_length: int = 64, **config) -> Path:
    """Unigram pieces and language codes: a translation needs src_lang and tgt_lang."""
    import transformers
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as CODES

    special, options = (
        ["<s>", "<pad>", "</s>", "<unk>"],
        {"model_max_length": max_length, "src_lang": "en_XX", **ANGLES},
    )
    around = ("$A </s> en_XX", "$A $B </s> en_XX")
    size = unigram(folder, special, "MBartTokenizer", around, (*CODES, "<mask>"), **options)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    shape = {**ENCODER_DECODER, **ids, "vocab_size": size, "max_position_embeddings": max_length}
    search = {"num_beams": 2, "max_length": 22, "forced_eos_token_id": 2}
    return save(
        folder, head, transformers.MBartConfig(**{**shape, **config}), generation={**ids, **search}, scale=0.4, ending=3
    )


def gpt2(folder: Path, head: str = "GPT2LMHeadModel", max_length: int = 128, **config) -> Path:
    """Byte-level BPE; no padding token and no chat template, as the real one."""
    import transformers

    end = {f"{name}_token": "<|endoftext|>" for name in ("bos", "eos", "unk")}
    size = byte_level(folder, ["<|endoftext|>"], "GPT2Tokenizer", model_max_length=max_length, **end)
    shape = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": max_length, "vocab_size": size}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return save(
        folder, head, transformers.GPT2Config(**{**shape, **ids, **config}), generation=ids, scale=0.4, ending=3
    )


def llama(folder: Path, head: str = "LlamaForCausalLM", max_length: int = 128, **config) -> Path:
    """Byte-level BPE, grouped heads; tokenizer and chat template both put <s> first, as Llama 3's do."""
    import transformers

    special = ["<s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    names = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "chat_template": "{{ bos_token }}" + CHATML,
    }
    names |= {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": max_length}
    size = byte_level(folder, special, "PreTrainedTokenizerFast", ("<s> $A", "<s> $A <s> $B"), **names)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 3}
    shape = {**ENCODER, **ids, "num_key_value_heads": 2, "vocab_size": size, "max_position_embeddings": max_length}
    return save(folder, head, transformers.LlamaConfig(**{**shape, **config}), generation=ids, scale=0.6, ending=2)


def qwen2(folder: Path, head: str = "Qwen2ForCausalLM", max_length: int = 128, **config) -> Path:
    """Byte-level BPE, tied embeddings, two tokens that end a text; its generation config samples, as Qwen's do."""
    import transformers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    size = byte_level(folder, special, "Qwen2Tokenizer", model_max_length=max_length, **names)
    ids = {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    shape = {**ENCODER, **ids, "num_key_value_heads": 2, "vocab_size": size, "max_position_embeddings": max_length}
    made = transformers.Qwen2Config(**{**shape, "tie_word_embeddings": True, **config})
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    return save(folder, head, made, generation={**ids, **sampling, "eos_token_id": [2, 0]}, scale=0.6, ending=2)
