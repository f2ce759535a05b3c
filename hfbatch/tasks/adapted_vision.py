"""The adapted tasks that look at pictures: what each reads, takes and writes; adapted.py says how they run."""

from __future__ import annotations

from collections.abc import Mapping
from tempfile import NamedTemporaryFile
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt

from hfbatch.kinds import IMAGE, TEXTS, VIDEO
from hfbatch.sequences import Sequences
from hfbatch.tasks.adapted import Adapted, Files, Labelled, LabelParams, npy, png
from hfbatch.tasks.base import Params

_MASKS = pa.schema([("masks", pa.list_(pa.binary()))])


class DepthEstimation(Adapted):
    """depth-estimation: how far away each pixel of an image is.

    reads   image            image
    writes  result           JSON: height, width, and the least and greatest depth, which are black and white in `depth`
            depth            binary: PNG, grey
            predicted_depth  binary: .npy, float32 (height, width), in the model's own unit
    """

    name = "depth-estimation"
    autos = ("AutoModelForDepthEstimation",)
    needs = parts = ("image_processor",)
    reads = pa.schema([("image", IMAGE)])
    files = pa.schema([("depth", pa.binary()), ("predicted_depth", pa.binary())])
    Params = Params

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """The image."""
        return media[0]

    def split(self, answer: Any) -> tuple[Any, Files]:
        """The map twice: to look at, and to compute with."""
        depth = answer["predicted_depth"].cpu().float().numpy()
        height, width = depth.shape[-2:]
        about = {"height": height, "width": width, "min": float(depth.min()), "max": float(depth.max())}
        return about, {"depth": png(answer["depth"]), "predicted_depth": npy(depth)}


class ImageSegmentationParams(Params):
    """Settings of image-segmentation."""

    subtask: Literal["panoptic", "instance", "semantic"] | None = Field(
        default=None, description="null: the first of these that the checkpoint's processor can do"
    )
    threshold: float | None = Field(default=None, ge=0, le=1, description="least score of a segment; null: 0.9")
    mask_threshold: float | None = Field(default=None, ge=0, le=1, description="least score of a pixel; null: 0.5")
    overlap_mask_area_threshold: float | None = Field(
        default=None, ge=0, le=1, description="segments of which less is left behind others go; null: 0.5"
    )


class ImageSegmentation(Adapted):
    """image-segmentation: the segments of an image, each with its label and mask.

    reads   image   image
    writes  result  JSON: a list of {label, score, mask}; mask is an index into `masks`
            masks   list<binary>: PNG, 255 where the segment is
    """

    name = "image-segmentation"
    autos = (
        "AutoModelForImageSegmentation",
        "AutoModelForUniversalSegmentation",
        "AutoModelForSemanticSegmentation",
        "AutoModelForInstanceSegmentation",
    )
    needs = ("image_processor",)
    parts = ("image_processor", "tokenizer")  # OneFormer reads its task as text
    reads = pa.schema([("image", IMAGE)])
    files = _MASKS
    Params = ImageSegmentationParams

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """The image."""
        return media[0]

    def split(self, answer: Any) -> tuple[Any, Files]:
        """Masks by number."""
        result = [{**segment, "mask": number} for number, segment in enumerate(answer)]
        return result, {"masks": [png(segment["mask"]) for segment in answer]}


class MaskGenerationParams(Params):
    """Settings of mask-generation; null: the pipeline's default."""

    points_per_batch: PositiveInt = Field(default=64, description="points that go through the model at once")
    points_per_crop: PositiveInt | None = Field(default=None, description="points along a side of a crop")
    crops_n_layers: NonNegativeInt | None = Field(default=None, description="how often the image is cut finer")
    crop_overlap_ratio: float | None = Field(default=None, ge=0, le=1, description="how far crops overlap")
    crop_n_points_downscale_factor: PositiveInt | None = Field(default=None, description="fewer points in finer crops")
    crops_nms_thresh: float | None = Field(default=None, ge=0, le=1, description="overlap above which boxes are one")
    pred_iou_thresh: float | None = Field(default=None, ge=0, le=1, description="least quality the model predicts")
    stability_score_thresh: float | None = Field(default=None, ge=0, le=1, description="least stability of a mask")
    stability_score_offset: float | None = Field(default=None, description="shift of the cut that tests stability")
    mask_threshold: float | None = Field(default=None, description="cut that makes logits a mask")


class MaskGeneration(Adapted):
    """mask-generation: masks of all that can be told apart in an image.

    reads   image   image
    writes  result  JSON: {scores}, one a mask
            masks   list<binary>: PNG, 255 where the mask is
    """

    name = "mask-generation"
    autos = ("AutoModelForMaskGeneration",)
    needs = ("image_processor",)
    parts = ("image_processor", "processor")
    reads = pa.schema([("image", IMAGE)])
    files = _MASKS
    Params = MaskGenerationParams

    def packages(self) -> Mapping[str, str]:
        """For its non-maximum suppression."""
        return {"torchvision": "install the build that goes with your torch"}

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """The image."""
        return media[0]

    def split(self, answer: Any) -> tuple[Any, Files]:
        """Masks, and the rest."""
        masks = [png(mask) for mask in answer["masks"]]
        return {name: value for name, value in answer.items() if name != "masks"}, {"masks": masks}


class ThresholdParams(Params):
    """One threshold."""

    threshold: float | None = Field(default=None, ge=0, le=1, description="least score; null: the pipeline's default")


class KeypointMatching(Adapted):
    """keypoint-matching: points of one image and where they are in another.

    reads   image        image
            other_image  image
    writes  result       JSON: a list of {keypoint_image_0: {x, y}, keypoint_image_1: {x, y}, score}, best first
    """

    name = "keypoint-matching"
    autos = ("AutoModelForKeypointMatching",)
    needs = parts = ("image_processor",)
    reads = pa.schema([("image", IMAGE), ("other_image", IMAGE)])
    Params = ThresholdParams

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """Both images."""
        return media


class ZeroShotObjectDetectionParams(LabelParams):
    """Settings of zero-shot-object-detection."""

    threshold: float | None = Field(default=None, ge=0, le=1, description="least score of an object; null: 0.1")
    top_k: PositiveInt | None = Field(default=None, description="how many objects, best first; null: all")


class ZeroShotObjectDetection(Labelled):
    """zero-shot-object-detection: objects of labels that no model was trained for, with their boxes.

    reads   image             image
            candidate_labels  list of texts, where params do not give them
    writes  result            JSON: a list of {label, score, box: {xmin, ymin, xmax, ymax}}, best first
    """

    name = "zero-shot-object-detection"
    autos = ("AutoModelForZeroShotObjectDetection",)
    needs = parts = ("image_processor", "tokenizer")
    reads = pa.schema([("image", IMAGE)])
    optional = pa.schema([("candidate_labels", TEXTS)])
    Params = ZeroShotObjectDetectionParams

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """Image and labels."""
        return {"image": media[0], "candidate_labels": self.labels(row)}


class VideoClassificationParams(Params):
    """Settings of video-classification."""

    top_k: PositiveInt = Field(default=5, description="how many labels, best first")
    num_frames: PositiveInt | None = Field(default=None, description="frames looked at; null: as the model was trained")
    frame_sampling_rate: PositiveInt | None = Field(default=None, description="every which frame; null: every one")
    function_to_apply: Literal["none", "softmax", "sigmoid"] | None = Field(
        default=None, description="logits to scores; null: what the checkpoint's problem_type asks for"
    )


class VideoClassification(Adapted):
    """video-classification: the likeliest labels of a video.

    reads   video   video
    writes  result  JSON: a list of {label, score}, best first
    """

    name = "video-classification"
    autos = ("AutoModelForVideoClassification",)
    needs = parts = ("image_processor",)
    reads = pa.schema([("video", VIDEO)])
    Params = VideoClassificationParams

    def packages(self) -> Mapping[str, str]:
        """For decoding."""
        return {"av": "pip install av"}

    def request(self, row: dict[str, Any], media: list[Any]) -> Any:
        """The name of a file, which is what the pipeline opens."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(media[0].tobytes())
        self._file.flush()
        return self._file.name

    def _answer(self, sequences: Sequences, index: int) -> bytes:
        with NamedTemporaryFile(suffix=".video") as self._file:  # under .m3u8 it could name other files to read
            return super()._answer(sequences, index)
