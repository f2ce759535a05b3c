"""Fast tokenizers made by hand, not trained: the same ids under every version of tokenizers.

Each writes tokenizer.json and tokenizer_config.json as the hub has them, with the class name that real checkpoints
of the family declare, and returns its vocabulary's size.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.models import WORDS

KNOWN = [*WORDS, *"user assistant system question context summarize translate English German where who".split()]
BRACKETS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def pieces() -> list[tuple[str, float]]:
    """SentencePiece's kind of vocabulary without special tokens: known words, then single characters."""
    letters = string.ascii_letters + string.digits + ".,:;!?'-"
    words = [(f"▁{word}", -3 - 0.01 * i) for i, word in enumerate(dict.fromkeys(KNOWN))]
    return [*words, ("▁", -5.0), *((letter, -6 - 0.01 * i) for i, letter in enumerate(letters))]


def merges() -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-level BPE's tokens and merges: every byte, and each known word letter by letter after a space."""
    from tokenizers.pre_tokenizers import ByteLevel

    pairs: dict[tuple[str, str], None] = {}
    for word in KNOWN:
        for end in range(len(word)):
            pairs["Ġ" + word[:end], word[end]] = None
    return [*sorted(ByteLevel.alphabet()), *(a + b for a, b in pairs)], list(pairs)


def _write(folder: Path, tokenizer: Any, special: Iterable[str], kind: str, **config: Any) -> int:
    from tokenizers import AddedToken

    folder.mkdir(parents=True, exist_ok=True)
    stripping = config.get("mask_token")  # a mask takes the space before it along
    tokenizer.add_special_tokens([AddedToken(s, lstrip=s == stripping, normalized=False) for s in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tokenizer.get_vocab_size()


def _around(tokenizer: Any, single: str, pair: str | None, special: Iterable[str]) -> Any:
    from tokenizers.processors import TemplateProcessing

    known = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(special)]
    return TemplateProcessing(single=single, pair=pair, special_tokens=known)


def wordpiece(folder: Path, kind: str = "BertTokenizer", **config: Any) -> int:
    """BERT's pieces: known words, and letters that begin a word or go on with it; lower case."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = string.ascii_lowercase + string.digits + ".,:;!?'-"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = dict.fromkeys([*special, *(w.lower() for w in KNOWN), *letters, *(f"##{c}" for c in letters)])
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    around = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    tokenizer.post_processor = _around(tokenizer, *around, ["[CLS]", "[SEP]"])
    size = _write(folder, tokenizer, special, kind, **BRACKETS, **config)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return size


def byte_level(folder: Path, special: list[str], kind: str, around: tuple[str, str] | None = None, **config) -> int:
    """Byte-level BPE as GPT-2 has it; `around` is the template of one text and of a pair (None: nothing is added)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokens, pairs = merges()
    vocabulary = {token: i for i, token in enumerate([*special, *tokens])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kind in ("RobertaTokenizer", "BartTokenizer"):
        ends = ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"])
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    elif around:
        tokenizer.post_processor = _around(tokenizer, *around, [s for s in special if s in around[1]])
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _write(folder, tokenizer, special, kind, **config)


def unigram(
    folder: Path, special: list[str], kind: str, around: tuple[str, str], last: tuple[str, ...] = (), **config
) -> int:
    """Unigram as SentencePiece makes it; `special` opens the vocabulary and `last` closes it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = [*((s, 0.0) for s in special), *pieces(), *((s, 0.0) for s in last)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=special.index(config.get("unk_token", "<unk>"))))
    marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    if kind == "DebertaV2Tokenizer":
        spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
        tokenizer.normalizer = normalizers.Sequence([spaces, normalizers.NFC(), normalizers.Strip(left=False)])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([marks])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = _around(tokenizer, *around, [s for s in [*special, *last] if s in around[1]])
    return _write(folder, tokenizer, [*special, *last], kind, **config)


def sentencepiece(folder: Path) -> int:
    """Marian's files: source.spm and target.spm (one model here) and vocab.json, whose ids are not SentencePiece's."""
    from sentencepiece import sentencepiece_model_pb2

    folder.mkdir(parents=True, exist_ok=True)
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in pieces():
        proto.pieces.add(piece=piece, score=score)
    proto.trainer_spec.model_type = 1  # unigram
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.precompiled_charsmap = b""
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(proto.SerializeToString())
    vocabulary = {token: i for i, token in enumerate(["</s>", "<unk>", *(p for p, _ in pieces()), "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return len(vocabulary)
