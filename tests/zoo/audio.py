"""Tiny seeded checkpoints that hear or speak, with feature extractors and tokenizers as real ones have.

Sounds are short: what is 30 s for the real Whisper is two seconds here. Frames are as long as in the real ones.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tests.zoo.tokenizers import merges
from tests.zoo.vision import HIDDEN, TRANSFORMER, configured, end_in_time, labels, saved

SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}  # of an encoder or decoder
SOUNDS = {0: "speech", 1: "music", 2: "dog bark", 3: "silence"}
LANGUAGES = ("en", "de", "es", "fr")
WINDOW = 2  # seconds that whisper() hears at once


def whisper_tokenizer():
    """Byte-level BPE, then Whisper's special tokens in their order, then a token for each 20 ms of the window."""
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer

    tokens, pairs = merges()
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(
        vocab={token: i for i, token in enumerate([*tokens, *special])},
        merges=pairs,
        pad_token=special[0],
        additional_special_tokens=special,
        model_max_length=1024,
    )
    times = [AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False) for i in range(WINDOW * 50 + 1)]
    tokenizer.add_tokens(times)
    return tokenizer


def whisper(folder: Path, **config) -> Path:
    """A multilingual Whisper whose window is two seconds; its text and its times differ between sounds."""
    import transformers

    tokenizer = whisper_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    tokens = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    made = configured(
        "WhisperConfig",
        config,
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=HIDDEN,
        **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()},
        max_source_positions=WINDOW * 50,
        **tokens,
    )
    model = transformers.WhisperForConditionalGeneration(made)
    model.generation_config = transformers.GenerationConfig(
        **tokens,
        max_length=448,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        begin_suppress_tokens=[tokenizer.convert_tokens_to_ids("Ġ"), end],
        suppress_tokens=sorted(i for i in ids.values() if i not in (end, ids["<|notimestamps|>"])),
        alignment_heads=[[0, 0], [1, 1]],
        return_timestamps=False,
    )
    features = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW)

    def bend(model):
        decoder = model.model.decoder
        end_in_time(decoder.embed_tokens.weight, decoder.embed_positions.weight, end, steps=5)

    return saved(
        folder, model, features, tokenizer, times={"embed_positions": 3, "encoder_attn.out_proj.weight": 2}, bend=bend
    )


def wav2vec2(folder: Path, head: str = "Wav2Vec2ForCTC", masked: bool = False, **config) -> Path:
    """wav2vec 2.0, 20 ms a frame; `HubertFor*` and `Wav2Vec2Model` too.

    masked: as the large checkpoints, whose padded batches need an attention mask; the base ones know none.
    """
    import transformers

    kind = "Hubert" if head.startswith("Hubert") else "Wav2Vec2"
    norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if masked else {}
    if head.endswith("ForCTC"):
        folder.mkdir(parents=True, exist_ok=True)
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
        (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
        tokenizers = [transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")]
        norm |= {"vocab_size": len(letters)}
    else:
        tokenizers, norm = [], norm | labels(SOUNDS)
    made = configured(
        f"{kind}Config",
        config,
        **TRANSFORMER,
        **norm,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
    )
    features = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    return saved(folder, getattr(transformers, head)(made), features, *tokenizers)


def ast(folder: Path, **config) -> Path:
    """An Audio Spectrogram Transformer: every sound is cut or filled up to 128 frames of 10 ms."""
    import transformers

    made = configured(
        "ASTConfig",
        config,
        **TRANSFORMER,
        **labels(SOUNDS),
        num_mel_bins=32,
        max_length=128,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
    )
    features = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    return saved(folder, transformers.ASTForAudioClassification(made), features)


def _letters() -> bytes:
    """SpeechT5's SentencePiece model, which cuts every text into letters."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 4  # letters
    for i, (name, kind) in enumerate([("bos", 3), ("pad", 3), ("eos", 3), ("unk", 2)]):
        piece = {"bos": "<s>", "eos": "</s>"}.get(name, f"<{name}>")
        model.pieces.add(piece=piece, score=0.0, type=kind)
        setattr(model.trainer_spec, f"{name}_id", i)
    for i, letter in enumerate(["▁", *string.ascii_letters, *".,:;!?'-"]):
        model.pieces.add(piece=letter, score=-1.0 - i / 10)
    model.normalizer_spec.name = "identity"
    return model.SerializeToString()


def speecht5(folder: Path, **config) -> Path:
    """SpeechT5 that speaks; its vocoder is another checkpoint, `hifigan`. A voice is 8 numbers, not 512.

    The real one drops half of what its decoder hears of itself at random, in inference too:
    speech_decoder_prenet_dropout=0.5. Here it is 0.0, so that a text always sounds the same (transformers then drops
    all of it; text, voice and place in the sound remain).
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spm_char.model").write_bytes(_letters())
    tokenizer = transformers.SpeechT5Tokenizer(str(folder / "spm_char.model"), model_max_length=600)
    settings = {
        "speech_decoder_prenet_dropout": 0.0,
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "num_mel_bins": 16,
        "speaker_embedding_dim": 8,
        "speech_decoder_prenet_units": 16,
        "speech_decoder_postnet_layers": 2,
        "speech_decoder_postnet_units": 16,
        "max_text_positions": 600,
        "conv_dim": (16,) * 7,
        **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()},
    }
    model = transformers.SpeechT5ForTextToSpeech(configured("SpeechT5Config", config, **settings))
    features = transformers.SpeechT5FeatureExtractor(num_mel_bins=16)

    def bend(model):
        model.speech_decoder_postnet.prob_out.bias.fill_(-6)  # it would stop at once

    return saved(folder, model, features, tokenizer, scale=0.2, times={"prob_out.weight": 3}, bend=bend)


def hifigan(folder: Path, **config) -> Path:
    """The vocoder of `speecht5`: 16 mel bins to 256 samples a frame at 16 kHz."""
    import transformers

    made = configured(
        "SpeechT5HifiGanConfig",
        config,
        model_in_dim=16,
        upsample_initial_channel=16,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    return saved(folder, transformers.SpeechT5HifiGan(made), scale=0.3)


def vits(folder: Path, **config) -> Path:
    """VITS as MMS-TTS: lower-case letters, 16 kHz.

    Without noise, so that a text always gives the same sound; the real ones have noise_scale=0.667 and
    noise_scale_duration=0.8.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<unk>", " ", *"abcdefghijklmnopqrstuvwxyz0123456789-'_"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer = transformers.VitsTokenizer(folder / "vocab.json", language="eng", phonemize=False)
    settings = {
        "vocab_size": len(letters),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "flow_size": 16,
        "spectrogram_bins": 17,
        "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "duration_predictor_filter_channels": 16,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "posterior_encoder_num_wavenet_layers": 2,
        "noise_scale": 0.0,
        "noise_scale_duration": 0.0,
        "sampling_rate": 16_000,
    }
    model = transformers.VitsModel(configured("VitsConfig", config, **settings))
    return saved(folder, model, tokenizer, scale=0.1, times={"decoder.": 2.5})


def clap(folder: Path, max_length: int = 32, **config) -> Path:
    """CLAP: one second at 48 kHz as an image for a Swin of two stages, beside a RoBERTa."""
    import transformers

    from tests.zoo.tokenizers import byte_level

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>", "mask_token": "<mask>", "model_max_length": max_length}
    size = byte_level(folder, special, "RobertaTokenizer", **names)
    made = configured(
        "ClapConfig",
        config,
        text_config={
            **TRANSFORMER,
            "vocab_size": size,
            "max_position_embeddings": max_length + 2,
            "projection_dim": 16,
        },
        audio_config={
            "num_mel_bins": 16,
            "spec_size": 64,
            "window_size": 4,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "patch_embeds_hidden_size": 16,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "projection_dim": 16,
        },
        projection_dim=16,
    )
    features = transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=1, truncation="rand_trunc", padding="repeatpad"
    )
    return saved(folder, transformers.ClapModel(made), features)
