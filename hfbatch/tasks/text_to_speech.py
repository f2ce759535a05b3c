"""text-to-speech: each text, spoken.

reads   text               string
        speaker_embedding  list of numbers, optional: the voice of each row (SpeechT5; else params.speaker_embedding)
writes  audio              struct<bytes, sampling_rate>: a WAV file of 16 bits, one channel
        truncated          bool: the text was cut at the model's limit

VITS and SpeechT5. Both draw random numbers as they speak: the sound is a function of the row, `seed` and the params.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from hfbatch.errors import RowError
from hfbatch.kinds import VECTOR
from hfbatch.sequences import Array, Sequences
from hfbatch.tasks.audio import wav
from hfbatch.tasks.base import KEY, Batch, Companion, Flat, Outputs, Task
from hfbatch.tasks.text import TextParams, tokenise

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.checkpoint import Checkpoint
else:
    Tensor: TypeAlias = Any

_AUDIO = pa.struct([pa.field("bytes", pa.binary()), pa.field("sampling_rate", pa.int32())])
_ONLY = {
    "vits": ("speaker_id", "speaking_rate", "noise_scale", "noise_scale_duration"),
    "speecht5": ("speaker_embedding", "vocoder", "vocoder_revision", "threshold", "minlenratio", "maxlenratio"),
}


class TextToSpeechParams(TextParams):
    """Settings of text-to-speech; those of the other architecture are refused."""

    seed: NonNegativeInt | None = Field(default=None, description="where the random numbers start; null: drawn once")
    speaker_id: NonNegativeInt | None = Field(default=None, description="VITS of several voices: which one")
    speaking_rate: PositiveFloat | None = Field(default=None, description="VITS: larger is faster; null: its own")
    noise_scale: NonNegativeFloat | None = Field(default=None, description="VITS: how free the tone is; null: its own")
    noise_scale_duration: NonNegativeFloat | None = Field(
        default=None, description="VITS: how free the rhythm is; null: its own"
    )
    vocoder: str | None = Field(
        default=None, description="SpeechT5: the model that makes sound of spectra, such as microsoft/speecht5_hifigan"
    )
    vocoder_revision: str | None = Field(default=None, description="its branch, tag or commit; logged as the commit")
    speaker_embedding: list[float] | None = Field(default=None, description="SpeechT5: one voice for all rows")
    threshold: float | None = Field(default=None, gt=0, lt=1, description="SpeechT5: how sure of the end; null: 0.5")
    minlenratio: NonNegativeFloat | None = Field(default=None, description="SpeechT5: fewest frames a token; null: 0")
    maxlenratio: PositiveFloat | None = Field(default=None, description="SpeechT5: most frames a token; null: 20")


class TextToSpeech(Task):
    """Spoken text; with the row's random numbers the same samples as transformers' TextToAudioPipeline."""

    name = "text-to-speech"
    aliases = ("text-to-audio",)
    auto_model = "AutoModelForTextToWaveform"
    reads = pa.schema([("text", pa.string())])
    optional = pa.schema([("speaker_embedding", VECTOR)])
    inputs = ("input_ids",)
    host = ("key", "voice")
    keyed = True
    batch_tokens = (1, 1)  # there is nothing to gain, and a row alone has all of row_timeout_s
    generates = True
    unused_weights = ("posterior_encoder",)  # of VITS, for training
    Params = TextToSpeechParams

    def __init__(self, params: TextToSpeechParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        self.vocoder: Any = None
        self.kind, self.rate = str(self.config.model_type), 0
        if self.kind not in _ONLY:
            raise ValueError(f"it is a {self.kind}; text-to-speech speaks with {' and '.join(_ONLY)} models")
        for name in (name for kind, names in _ONLY.items() if kind != self.kind for name in names):
            if getattr(params, name) is not None:
                raise ValueError(f"params.{name}: a {self.kind} model has no such setting; remove it")
        if self.kind == "vits":
            self._check_vits()
        else:
            self._check_speecht5()

    @classmethod
    def auto_class(cls, config: Any) -> str:
        """SpeechT5 makes spectra, VITS waves."""
        return "AutoModelForTextToSpectrogram" if config.model_type == "speecht5" else cls.auto_model

    @classmethod
    def companions(cls, params: Any) -> Mapping[str, Companion]:
        """The vocoder."""
        return {"vocoder": Companion(params.vocoder, params.vocoder_revision)} if params.vocoder else {}

    def loaded(self, model: Any) -> None:
        """SpeechT5 gets its vocoder, VITS the scales of its noise."""
        if self.kind == "speecht5":
            self.vocoder = _load_vocoder(self.checkpoint.companions["vocoder"]).to(model.device)
        for name in ("noise_scale", "noise_scale_duration"):
            if getattr(self.params, name) is not None:
                setattr(model, name, getattr(self.params, name))

    def writes(self) -> pa.Schema:
        """One file a text."""
        return pa.schema([("audio", _AUDIO), ("truncated", pa.bool_())])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a text, with its row's key and voice."""
        limits = self.params
        positions = getattr(self.config, "max_text_positions", None)
        if positions is not None:
            limits = limits.model_copy(update={"max_length": min(limits.max_length or positions, positions)})
        made = tokenise(self.tokenizer, self.config, limits, rows["text"].to_pylist())
        voices, refused = self._voices(rows)
        kept = made.take(np.flatnonzero(~np.isin(made.row, list(refused))))
        columns = {**kept.columns, "key": rows[KEY].to_numpy()[kept.row]}
        if voices is not None:
            columns["voice"] = voices[kept.row]
        return Sequences(kept.row, columns, {**refused, **made.errors})

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Samples of each sequence, float32. One after another: behind padding both models would speak differently."""
        import torch

        model = getattr(model, "_orig_mod", model)  # a compiled one would draw its own random numbers
        ids, keys = batch.inputs["input_ids"], batch.sequences.dense("key").tolist()
        spoken = []
        for index, (length, key) in enumerate(zip(batch.lengths.tolist(), keys, strict=True)):
            with _drawn_from(self.params.seed, key):
                spoken.append(self._speak(model, ids[index : index + 1, :length], batch, index).float().flatten())
        return {"samples": Flat(torch.cat(spoken), torch.tensor([len(wave) for wave in spoken]))}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Samples to files."""
        samples = outputs.ragged("samples")
        files = [{"bytes": wav(samples[index], self.rate), "sampling_rate": self.rate} for index in range(len(samples))]
        columns = [pa.array(files, _AUDIO), pa.array(outputs.dense("truncated"))]
        return pa.Table.from_arrays(columns, schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """A minute of speech."""
        return 60 * 2 * self.rate

    def _speak(self, model: Any, ids: Tensor, batch: Batch, index: int) -> Tensor:
        """(1, tokens) ids to samples."""
        import torch

        params = self.params
        if self.kind == "vits":
            spoken: Tensor = model(
                input_ids=ids, speaker_id=params.speaker_id, speaking_rate=params.speaking_rate
            ).waveform
            return spoken
        voice = batch.sequences.dense("voice")[index : index + 1]
        spectra = model.generate_speech(
            ids,
            speaker_embeddings=torch.from_numpy(voice).to(model.device, model.dtype),
            attention_mask=torch.ones_like(ids),
            threshold=params.threshold or 0.5,
            minlenratio=params.minlenratio or 0.0,
            maxlenratio=params.maxlenratio or 20.0,
        )
        heard: Tensor = self.vocoder(spectra.float())
        return heard

    def _voices(self, rows: pa.Table) -> tuple[Array | None, dict[int, RowError]]:
        """(rows, numbers) float32 speaker embeddings, and the rows whose own cannot be one."""
        if self.kind != "speecht5":
            return None, {}
        size, errors = self.config.speaker_embedding_dim, dict[int, RowError]()
        if self.params.speaker_embedding is not None:
            return np.tile(np.array(self.params.speaker_embedding, dtype=np.float32), (len(rows), 1)), {}
        voices = np.zeros((len(rows), size), dtype=np.float32)
        for row, given in enumerate(rows["speaker_embedding"].to_pylist()):
            with np.errstate(over="ignore"):  # beyond float32 it is infinite, and refused
                voice = np.array(given, dtype=np.float32)
            if len(given) != size or not np.isfinite(voice).all():
                errors[row] = RowError("bad_speaker_embedding", f"{len(given)} numbers; the model wants {size}, finite")
            else:
                voices[row] = voice
        return voices, errors

    def _check_vits(self) -> None:
        """ValueError for a voice that is not there, or a tokenizer that would drop letters in silence."""
        voices, asked = self.config.num_speakers, self.params.speaker_id
        self.rate = int(self.config.sampling_rate)
        if "speaker_embedding" in self.given.names:
            raise ValueError("input.columns.speaker_embedding: a vits model has no such input; remove it")
        if voices > 1 and asked is None:
            raise ValueError(f"params.speaker_id: this model has {voices} voices; write one of 0 to {voices - 1}")
        if asked is not None and asked >= max(voices, 1):
            raise ValueError(f"params.speaker_id: {asked}, and this model has {voices} voices, counted from 0")
        for flag, package in (("phonemize", "phonemizer"), ("is_uroman", "uroman")):
            if getattr(self.tokenizer, flag, False) and find_spec(package) is None:
                raise ValueError(f"its tokenizer needs a package that is not installed: pip install {package}")

    def _check_speecht5(self) -> None:
        """ValueError where there is no voice, or no vocoder for this model."""
        from transformers import PretrainedConfig

        size, voice = self.config.speaker_embedding_dim, self.params.speaker_embedding
        has_column = "speaker_embedding" in self.given.names
        if (voice is not None) == has_column:
            raise ValueError(
                f"SpeechT5 needs one voice of {size} numbers: either input.columns.speaker_embedding, or "
                "params.speaker_embedding for all rows"
            )
        if voice is not None and (len(voice) != size or not np.isfinite(voice).all()):
            raise ValueError(f"params.speaker_embedding: {len(voice)} numbers; this model wants {size}, finite")
        if "vocoder" not in self.checkpoint.companions:
            raise ValueError("params.vocoder: SpeechT5 makes spectra; write microsoft/speecht5_hifigan or another one")
        config, _ = PretrainedConfig.get_config_dict(self.checkpoint.companions["vocoder"], local_files_only=True)
        if config.get("model_type") not in ("hifigan", "speecht5_hifigan"):
            raise ValueError(f"params.vocoder: it is a {config.get('model_type')}, not a SpeechT5HifiGan")
        if config.get("model_in_dim", 80) != self.config.num_mel_bins:
            raise ValueError(
                f"params.vocoder: it reads {config.get('model_in_dim', 80)} mel bins, the model writes "
                f"{self.config.num_mel_bins}; take the vocoder that belongs to it"
            )
        self.rate = int(config.get("sampling_rate", 16_000))


def _load_vocoder(folder: str) -> Any:
    """The vocoder in float32, which its sums need. ValueError where weights are missing."""
    import torch
    from transformers import SpeechT5HifiGan

    vocoder, loading = SpeechT5HifiGan.from_pretrained(
        folder, local_files_only=True, weights_only=True, dtype=torch.float32, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise ValueError(f"params.vocoder: no weights for {', '.join(sorted(loading['missing_keys'])[:3])}")
    return vocoder.eval()


def _drawn_from(seed: int, key: int) -> AbstractContextManager[Any]:
    """Within it all that torch draws comes from (seed, key) alone, the same on every device."""
    import torch
    from torch.overrides import TorchFunctionMode

    state = np.random.SeedSequence([seed, key]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))

    def drawn(like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu", dtype=torch.float32)

    class Drawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.randn:
                return func(*args, **kwargs, generator=generator)
            if func is torch.randn_like:
                return drawn(args[0]).normal_(generator=generator).to(args[0])
            if func is torch.bernoulli:
                return drawn(args[0]).bernoulli_(kwargs["p"], generator=generator).to(args[0])
            return func(*args, **kwargs)

    return Drawn()
