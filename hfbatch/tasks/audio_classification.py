"""audio-classification: the likeliest labels of each sound, with their probability.

reads   audio   bytes (WAV, FLAC, OGG, MP3), struct{bytes, path}, or struct{array, sampling_rate}; any rate
writes  labels  list<struct<label, score>>, best first; with top_k: 1 two columns: label string, score float32
                score: softmax or sigmoid probability, or the raw logit
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

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
from hfbatch.tasks.base import Batch, Outputs, Params, Task
from hfbatch.tasks.scores import Function, best_labels, fields, scores_of

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint


class AudioClassificationParams(Params):
    """Settings of audio-classification."""

    top_k: PositiveInt | None = Field(default=5, description="how many labels, best first; null: all")
    function_to_apply: Function | None = Field(
        default=None, description="logits to scores; null: what the checkpoint's problem_type asks for"
    )


class AudioClassification(Task):
    """Audio classification heads; values equal transformers' AudioClassificationPipeline."""

    name = "audio-classification"
    auto_model = "AutoModelForAudioClassification"
    needs = ("feature_extractor",)
    reads = pa.schema([("audio", AUDIO)])
    inputs = AUDIO_INPUTS
    batch_tokens = BATCH_TOKENS
    streams = True
    Params = AudioClassificationParams

    def __init__(
        self, params: AudioClassificationParams, checkpoint: Checkpoint, given: pa.Schema | None = None
    ) -> None:
        super().__init__(params, checkpoint, given)
        require_packages()

    def writes(self) -> pa.Schema:
        """labels, or label and score when top_k is 1."""
        return pa.schema(fields(self.params.top_k))

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence a sound."""
        extractor, least = self.checkpoint.feature_extractor, shortest(self.config)

        def made(samples: Array) -> dict[str, Array]:
            refuse_short(samples, least, extractor.sampling_rate)
            return extract(extractor, samples)

        done, errors = each_sound(rows["audio"], extractor.sampling_rate, made)
        columns = sound_columns(list(done.values()), self.config)
        return Sequences(np.array(list(done), dtype=np.int64), columns, errors)

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, labels), float32."""
        return {"logits": model(**batch.inputs).logits.float()}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """Scores of the best labels; equal scores keep the order of the labels."""
        asked, logits = self.params, outputs.dense("logits")
        function = asked.function_to_apply
        if function is None and self.config.num_labels == 1 and self.config.problem_type is None:
            function = "softmax"  # here a single label is no special case for transformers
        columns = best_labels(scores_of(logits, self.config, function), self.config, asked.top_k)
        return pa.Table.from_arrays(columns, schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """A few hundred bytes a label."""
        labels = int(self.config.num_labels)
        return 4096 + 256 * min(self.params.top_k or labels, labels)
