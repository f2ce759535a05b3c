"""Tiny seeded checkpoints that answer from a page (words and their boxes) or from a table."""

from __future__ import annotations

from pathlib import Path

from tests.models import WORDS, wordpiece
from tests.zoo.vision import TRANSFORMER, configured, saved


def layoutlm(folder: Path, max_length: int = 128, **config) -> Path:
    """LayoutLM: a span of the words of a page; boxes are 0 to 1000."""
    import transformers

    tokenizer = wordpiece(folder, max_length)
    made = configured(
        "LayoutLMConfig",
        config,
        **TRANSFORMER,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        pad_token_id=0,
    )
    return saved(folder, transformers.LayoutLMForQuestionAnswering(made), tokenizer)


def tapas(folder: Path, max_length: int = 128, **config) -> Path:
    """TAPAS, weakly supervised as WTQ's: cells, and whether to sum, average or count them."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?$%-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]", *WORDS, *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    tokenizer = transformers.TapasTokenizer(str(folder / "vocab.txt"), model_max_length=max_length)
    made = configured(
        "TapasConfig",
        config,
        **TRANSFORMER,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        num_aggregation_labels=4,
        aggregation_labels={0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"},
        use_answer_as_supervision=True,
    )
    return saved(folder, transformers.TapasForQuestionAnswering(made), tokenizer, times={"token_type_embeddings": 0.3})
