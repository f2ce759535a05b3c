"""translation: each text in another language.

reads   text              string
writes  translation_text  string, without special tokens; with num_return_sequences above 1 a list of those
        truncated         bool: the text was cut at the model's limit, or at max_input_length

Named translation_en_to_de it translates from en to de, as params src_lang and tgt_lang say. Models that know many
languages want both, as they spell them (en_XX, eng_Latn); models of one pair need neither.

Where params do not say otherwise it searches with 4 beams, or as config.task_specific_params has it, and writes up to
256 tokens, as transformers 4.57 did; where the checkpoint's settings have a max_length, that counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from hfbatch.tasks.seq2seq import Rewriter, Rewriting, Seq2SeqParams

if TYPE_CHECKING:
    pass


class TranslationParams(Seq2SeqParams):
    """Settings of translation."""

    src_lang: str | None = Field(default=None, description="language of the texts, as the checkpoint spells it")
    tgt_lang: str | None = Field(default=None, description="language to translate into, as the checkpoint spells it")


class Translation(Rewriting):
    """Encoder-decoders; values equal the TranslationPipeline of transformers 4.57."""

    name = "translation"
    pattern = r"translation_([A-Za-z]\w*?)_to_([A-Za-z]\w*)"
    writes_text = "translation_text"
    Params = TranslationParams

    def make_rewriter(self) -> Rewriter:
        """With the tokenizer set to the languages, where it has codes for them."""
        tokenizer, forced = self.checkpoint.copy_tokenizer(), {}
        if hasattr(tokenizer, "_build_translation_inputs"):
            forced["forced_bos_token_id"] = _set_languages(tokenizer, self.params)
        return Rewriter(self.params, self.checkpoint, _key(self.params, self.config), tokenizer, **forced)

    @classmethod
    def params_in_name(cls, name: str) -> Mapping[str, Any]:
        """The languages."""
        found = re.fullmatch(cls.pattern, name)
        return {"src_lang": found[1], "tgt_lang": found[2]} if found else {}


def _key(params: TranslationParams, config: Any) -> str:
    """Where config.task_specific_params has these languages; the first translation there when none are named."""
    known = [key for key in getattr(config, "task_specific_params", None) or {} if key.startswith("translation")]
    if params.src_lang is None and params.tgt_lang is None:
        return known[0] if known else "translation"
    key = f"translation_{params.src_lang}_to_{params.tgt_lang}"
    if known and key not in known and params.prefix is None:
        raise ValueError(f"params: it knows {', '.join(known)}, not {key}: take one of them, or write params.prefix")
    return key


def _set_languages(tokenizer: Any, params: TranslationParams) -> int:
    """Makes `tokenizer` mark texts as params.src_lang; the token that starts a text in params.tgt_lang."""
    if params.src_lang is None or params.tgt_lang is None:
        raise ValueError("it knows many languages: write params.src_lang and params.tgt_lang, as it spells them")
    languages, unknown = {"src_lang": params.src_lang, "tgt_lang": params.tgt_lang}, tokenizer.unk_token_id
    try:
        made = tokenizer._build_translation_inputs("a", return_tensors=None, **languages)
    except (KeyError, ValueError) as error:
        raise ValueError(f"params: it does not know both of {params.src_lang} and {params.tgt_lang}") from error
    codes = {"src_lang": made["input_ids"], "tgt_lang": [made["forced_bos_token_id"]]}
    for name, ids in codes.items():
        if {unknown, None} & set(ids):
            known = sorted(token for token in tokenizer.all_special_tokens if re.match("_*[a-z]{2}", token))
            near = f", which are {', '.join(known[:12])} ..." if known else ""
            raise ValueError(f"params.{name}: {languages[name]!r} is none of its languages{near}")
    return int(made["forced_bos_token_id"])
