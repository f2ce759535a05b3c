"""object-detection: the objects in each image, with their label, probability and box.

reads   image    bytes, or struct{bytes, path}
writes  objects  list<struct<label, score, box>> in the model's order; box is struct<xmin, ymin, xmax, ymax int32> in
                 pixels of the image as it is shown, that is turned as its EXIF data say
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from hfbatch.kinds import IMAGE
from hfbatch.sequences import Sequences
from hfbatch.tasks.base import Batch, Outputs, Params, Task
from hfbatch.tasks.images import IMAGE_INPUTS, image_sequences
from hfbatch.tasks.text import structs

if TYPE_CHECKING:
    from hfbatch.checkpoint import Checkpoint

_BOX = pa.struct([(side, pa.int32()) for side in ("xmin", "ymin", "xmax", "ymax")])
_OBJECT = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32()), pa.field("box", _BOX)])


class ObjectDetectionParams(Params):
    """Settings of object-detection."""

    threshold: float = Field(default=0.5, ge=0, le=1, description="leave out objects less likely than this")


class ObjectDetection(Task):
    """Detectors of the DETR kind; values equal transformers' ObjectDetectionPipeline."""

    name = "object-detection"
    auto_model = "AutoModelForObjectDetection"
    needs = ("image_processor",)
    reads = pa.schema([("image", IMAGE)])
    inputs = IMAGE_INPUTS
    streams = True
    Params = ObjectDetectionParams

    def __init__(self, params: ObjectDetectionParams, checkpoint: Checkpoint, given: pa.Schema | None = None) -> None:
        super().__init__(params, checkpoint, given)
        known = hasattr(checkpoint.image_processor, "post_process_object_detection")
        if not known or checkpoint.config.model_type.startswith("pp_"):  # layout and text lines, not logits and boxes
            kind = checkpoint.config.model_type
            raise ValueError(f"models of type {kind!r} do not detect as DETR does; take one of DETR, RT-DETR, YOLOS")

    def writes(self) -> pa.Schema:
        """objects, an empty list where there are none."""
        return pa.schema([("objects", pa.list_(_OBJECT))])

    def preprocess(self, rows: pa.Table) -> Sequences:
        """One sequence an image; `size` goes on to postprocess."""
        return image_sequences(self.checkpoint.image_processor, rows["image"])

    def forward(self, model: Any, batch: Batch) -> Outputs:
        """Logits (sequences, queries, labels) and boxes (sequences, queries, 4), relative to the image; float32."""
        found = model(**batch.inputs)
        return {"logits": found.logits.float(), "boxes": found.pred_boxes.float()}

    def postprocess(self, outputs: Sequences, rows: pa.Table) -> pa.Table:
        """The checkpoint's own way from logits to labels, and from relative boxes to pixels."""
        import torch

        detections = self.checkpoint.image_processor.post_process_object_detection(
            SimpleNamespace(
                logits=torch.from_numpy(outputs.dense("logits")), pred_boxes=torch.from_numpy(outputs.dense("boxes"))
            ),
            self.params.threshold,
            torch.from_numpy(outputs.dense("size")),
        )
        labels = [self.config.id2label[int(label)] for found in detections for label in found["labels"]]
        boxes = np.concatenate([np.zeros((0, 4)), *(found["boxes"].numpy() for found in detections)]).astype(np.int32)
        fields = {
            "label": labels,
            "score": np.concatenate([np.zeros(0), *(found["scores"].numpy() for found in detections)]),
            "box": pa.StructArray.from_arrays([pa.array(side) for side in boxes.T], fields=list(_BOX)),
        }
        objects = structs(fields, [len(found["labels"]) for found in detections], _OBJECT)
        return pa.Table.from_arrays([objects], schema=self.writes())

    def max_bytes_per_row(self) -> int:
        """Every query finds an object."""
        return 4096 + 128 * int(getattr(self.config, "num_queries", None) or 1000)
