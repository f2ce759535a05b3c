"""automatic-speech-recognition: what is said in each sound.

reads   audio   bytes (WAV, FLAC, OGG, MP3), struct{bytes, path}, or struct{array, sampling_rate}; any rate, any length
writes  text    string
        chunks  list<struct<text, start, end>> with return_timestamps, else null: pieces of the text and when they were
                said, in seconds; end is null where the model did not hear one

Whisper hears 30 s at once, and longer sound in windows that overlap; any other model hears a sound as a whole unless
chunk_length_s is given, at a cost that grows with the square of its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hfbatch.kinds import AUDIO
from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.audio import (
    AUDIO_INPUTS,
    BATCH_TOKENS,
    each_sound,
    extract,
    refuse_short,
    require_packages,
    shortest,
    sound_columns,
)
from hfbatch.tasks.base import Batch, Flat, Outputs, Params, Task
from hfbatch.tasks.speech import Chunk, Chunking, Part, chunking, ctc_text, cut, seq2seq_text, whisper_text

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.checkpoint import Checkpoint
else:
    Tensor: TypeAlias = Any

_CHUNK = pa.struct([pa.field("text", pa.string()), pa.field("start", pa.float32()), pa.field("end", pa.float32())])
_ONLY_WHISPER = ("language", "task")
_ONLY_GENERATED = ("num_beams", "max_new_tokens")


class AutomaticSpeechRecognitionParams(Params):
    """Settings of automatic-speech-recognition."""

    chunk_length_s: PositiveFloat | None = Field(
        default=None, description="hear long sound in chunks of so many seconds; null: Whisper's window, else no chunks"
    )
    stride_length_s: NonNegativeFloat | tuple[NonNegativeFloat, NonNegativeFloat] | None = Field(
        default=None, description="how far a chunk overlaps its neighbours, or [left, right]; null: chunk_length_s / 6"
    )
    return_timestamps: bool | Literal["word", "char"] = Field(
        default=False, description="fill `chunks`: true (Whisper's phrases), word, or char (CTC models)"
    )
    language: str | None = Field(
        default=None, description="Whisper: the language spoken, as en or english; null: it listens for it"
    )
    task: Literal["transcribe", "translate"] | None = Field(
        default=None, description="Whisper: translate writes English"
    )
    num_beams: PositiveInt | None = Field(
        default=None, description="Whisper, seq2seq: 1 is greedy; null: what generation_config.json says, else 5"
    )
    max_new_tokens: PositiveInt | None = Field(
        default=None, description="Whisper, seq2seq: of a chunk; null: what generation_config.json says, else 256"
    )


class AutomaticSpeechRecognition(Task):
    """Whisper, CTC and other seq2seq heads; values equal transformers' AutomaticSpeechRecognitionPipeline.

    Without a language model beside it: what pyctcdecode would add is not used.
    """

    name = "automatic-speech-recognition"
    auto_model = "AutoModelForCTC"
    needs = ("feature_extractor", "tokenizer")
    reads = pa.schema([("audio", AUDIO)])
    inputs = AUDIO_INPUTS
    batch_tokens = BATCH_TOKENS
    streams = True
    Params = AutomaticSpeechRecognitionParams

    def __init__(
        self, params: AutomaticSpeechRecognitionParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        require_packages()
        self.generates = self.auto_class(self.config) == "AutoModelForSpeechSeq2Seq"
        self.kind = "whisper" if self.config.model_type == "whisper" else "seq2seq" if self.generates else "ctc"
        self.rate = int(checkpoint.feature_extractor.sampling_rate)
        self.frame = int(getattr(self.config, "inputs_to_logits_ratio", None) or 1)  # samples a token of CTC
        self._refuse_params_of_others()
        self.timestamps = params.return_timestamps
        if self.kind == "whisper":
            self._check_language()
            self.timestamps = self.timestamps or bool(getattr(checkpoint.generation_config, "return_timestamps", False))
        self.chunking = self._chunking()

    @classmethod
    def auto_class(cls, config: Any) -> str:
        """By what the checkpoint was saved as, else by its type."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES as SEQ2SEQ

        saved = getattr(config, "architectures", None) or ()
        is_ctc = any(name.endswith("ForCTC") for name in saved) or config.model_type not in SEQ2SEQ
        return "AutoModelForCTC" if is_ctc else "AutoModelForSpeechSeq2Seq"

    def writes(self) -> pa.Schema:
        """The text, and its chunks."""
        return pa.schema([("text", pa.string()), ("chunks", pa.list_(_CHUNK))])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a chunk; `stride` (sequences, 3) says where it lies."""
        extractor, least = self.checkpoint.feature_extractor, shortest(self.config)
        masked = self.kind != "whisper" or self.timestamps == "word"
        options = {"return_attention_mask": True} if masked else {}

        def made(samples: Array) -> list[tuple[dict[str, Array], tuple[int, int, int]]]:
            refuse_short(samples, least, self.rate)
            chunks = cut(samples, self.chunking, least)
            return [(extract(extractor, chunk, **options), stride) for chunk, stride in chunks]

        done, errors = each_sound(rows["audio"], self.rate, made)
        chunks = [chunk for found in done.values() for chunk in found]
        row = np.repeat(np.array(list(done), dtype=np.int64), [len(found) for found in done.values()])
        columns = sound_columns([features for features, _ in chunks], self.config)
        columns["stride"] = np.array([stride for _, stride in chunks], dtype=np.int64).reshape(-1, 3)
        return Sequences(row, columns, errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """`tokens` of each sequence; for word timestamps of Whisper `times`, in seconds, too."""
        if self.kind == "ctc":
            return _most_likely(model, batch)
        options = self._generate_options(model)
        if self.kind == "whisper" and self.timestamps == "word":
            return _with_times(model, batch, options)
        return {"tokens": _unpadded(model.generate(**batch.inputs, **options), model)}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Each row's chunks folded to one text."""
        times = outputs.ragged("times") if "times" in outputs.columns else None
        tokens, strides = outputs.ragged("tokens"), outputs.dense("stride").tolist()
        parts: list[list[Part]] = [[] for _ in range(len(rows))]
        for index, row in enumerate(outputs.row):
            parts[row].append(Part(tokens[index], strides[index], None if times is None else times[index]))
        found = [self._text(each) for each in parts]
        chunks = [None if each is None else [chunk._asdict() for chunk in each] for _, each in found]
        columns = [pa.array([text for text, _ in found], pa.string()), pa.array(chunks, pa.list_(_CHUNK))]
        return pa.Table.from_arrays(columns, schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """A few hours of speech, with a chunk a word."""
        return 1 << 20 if self.timestamps else 1 << 18

    def _text(self, parts: list[Part]) -> tuple[str, list[Chunk] | None]:
        tokenizer = self.tokenizer
        if self.kind == "ctc":
            return ctc_text(parts, tokenizer, self.timestamps, self.rate, self.frame)
        if self.kind == "seq2seq":
            return seq2seq_text(parts, tokenizer), None
        precision = self.checkpoint.feature_extractor.chunk_length / self.config.max_source_positions
        return whisper_text(parts, tokenizer, self.timestamps, self.rate, precision)

    def _chunking(self) -> Chunking | None:
        """How sound is cut. ValueError where params leave no way to."""
        length, stride = self.params.chunk_length_s, self.params.stride_length_s
        if self.kind == "whisper":
            window = self.checkpoint.feature_extractor.chunk_length
            if length is not None and length > window:
                raise ValueError(f"params.chunk_length_s: this model hears {window} s at once; write at most that")
            length = length or window
        if length is None:
            if stride is not None:
                raise ValueError("params.stride_length_s: it needs chunk_length_s, such as 30")
            return None
        return chunking(length, stride, self.rate, self.frame)

    def _refuse_params_of_others(self) -> None:
        kind, asked = self.config.model_type, self.params.return_timestamps
        others = {"whisper": (), "seq2seq": _ONLY_WHISPER, "ctc": (*_ONLY_WHISPER, *_ONLY_GENERATED)}[self.kind]
        for name in others:
            if getattr(self.params, name) is not None:
                raise ValueError(f"params.{name}: a {kind} model has no such setting; remove it")
        fits = {"whisper": (False, True, "word"), "seq2seq": (False,), "ctc": (False, "word", "char")}[self.kind]
        if asked not in fits:
            named, choice = str(asked).lower(), " or ".join(str(each).lower() for each in fits)
            raise ValueError(f"params.return_timestamps: a {kind} model cannot tell {named!r}; write {choice}")
        if self.kind == "ctc" and asked and not hasattr(self.tokenizer, "_get_word_offsets"):
            raise ValueError("params.return_timestamps: this model's tokenizer does not place letters; write false")

    def _check_language(self) -> None:
        """ValueError for a language or a kind of timestamps that this Whisper does not know."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        params, settings = self.params, self.checkpoint.generation_config
        known = {token[2:-2] for token in getattr(settings, "lang_to_id", None) or {}}
        if not getattr(settings, "is_multilingual", True):
            for name in _ONLY_WHISPER:
                if getattr(params, name) is not None:
                    raise ValueError(f"params.{name}: this model knows English alone; remove it")
        if params.language is not None:
            asked = params.language.lower().removeprefix("<|").removesuffix("|>")
            if TO_LANGUAGE_CODE.get(asked, asked) not in known:
                listed = ", ".join(sorted(known)) or "no languages (its generation_config.json is an old one)"
                raise ValueError(f"params.language: no {params.language!r} here; this model knows {listed}")
        if params.task is not None and params.task not in (getattr(settings, "task_to_id", None) or {}):
            raise ValueError("params.task: this model's generation_config.json names no tasks; remove it")
        if params.return_timestamps == "word" and not getattr(settings, "alignment_heads", None):
            raise ValueError("params.return_timestamps: generation_config.json has no alignment_heads; write true")

    def _generate_options(self, model: Any) -> dict[str, Any]:
        """What `generate` is told: params, and where neither they nor the checkpoint say, the pipeline's defaults."""
        params = self.params
        told = model.generation_config.to_diff_dict()
        defaults = {"num_beams": 5, "max_new_tokens": 256, "pad_token_id": self.tokenizer.pad_token_id}
        if "max_length" in told:
            del defaults["max_new_tokens"]
        names = (*_ONLY_GENERATED, *(_ONLY_WHISPER if self.kind == "whisper" else ()))
        asked = {name: getattr(params, name) for name in names if getattr(params, name) is not None}
        options = {name: value for name, value in defaults.items() if name not in told} | asked
        return options | (
            {"return_timestamps": bool(self.timestamps)} if self.kind == "whisper" else {"do_sample": False}
        )


def _most_likely(model: Any, batch: Batch) -> Outputs:
    """The likeliest token of each frame, and the greatest logit: NaN where there is one."""
    import torch

    logits = model(**batch.inputs).logits
    tokens = logits.argmax(dim=-1)
    frames = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
    if "attention_mask" in batch.inputs and "input_values" in batch.inputs:
        frames = model._get_feat_extract_output_lengths(batch.lengths)
    real = torch.arange(tokens.shape[1], device=tokens.device) < frames[:, None]
    return {"tokens": Flat(tokens[real], frames), "peak": logits.float().amax(dim=(1, 2))}


def _unpadded(tokens: Tensor, model: Any) -> Flat:
    """Generated tokens (sequences, longest) without what fills them up at the end."""
    import torch

    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    real = (tokens != model.generation_config.pad_token_id) * places
    lengths = real.amax(dim=1) if tokens.shape[1] else real.sum(dim=1)
    return Flat(tokens[places <= lengths[:, None]], lengths)


def _with_times(model: Any, batch: Batch, options: dict[str, Any]) -> Outputs:
    """Tokens, and when each was said. One sequence at a time: words are aligned by the attention of a whole batch."""
    import torch

    tokens, times = [], []
    for index in range(len(batch.lengths)):
        alone = {name: values[index : index + 1] for name, values in batch.inputs.items()}
        made = model.generate(**alone, **options, return_token_timestamps=True, return_segments=True)
        tokens.append(made["sequences"][0])
        said = [segment["token_timestamps"] for segment in made["segments"][0]]
        times.append(torch.cat(said).float().cpu() if said else torch.zeros(0))
    return {
        name: Flat(torch.cat(values), torch.tensor([len(each) for each in values]))
        for name, values in (("tokens", tokens), ("times", times))
    }
