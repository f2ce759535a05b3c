"""Tiny seeded vision checkpoints, saved as real ones are: config, safetensors, image processor; images go in alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.zoo import fill

HIDDEN = 32
SIDE = 32  # pixels of an image as most of these models see it
LABELS = {0: "cat", 1: "dog", 2: "red fox"}
TRANSFORMER = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def saved(folder: Path, model, *processors, scale: float = 0.4, times=None, bend: Callable | None = None) -> Path:
    """Fills the weights of `model` from their names and writes all parts into `folder`.

    Where one scale for all makes every input look alike: `times` is a part of a weight's name -> factor, and `bend`
    changes the filled model.
    """
    import torch

    fill(model, scale)
    with torch.no_grad():
        for part, factor in (times or {}).items():
            found = [weight for name, weight in model.named_parameters() if part in name]
            assert found, f"no weight of {type(model).__name__} has {part} in its name"
            for weight in found:
                weight.mul_(factor)
        if bend:
            bend(model)
    for part in (model.eval(), *processors):
        part.save_pretrained(folder)
    return folder


def end_in_time(words, positions, end: int, steps: float = 3) -> None:
    """Makes the end token likelier with every step of a decoder whose output layer is its embedding: texts do end.

    The first hidden number says how far the text is: `positions` (places, hidden) write it, of all `words`
    (vocabulary, hidden) only `end` reads it. Layers add what they know of the input, so lengths differ.
    """
    import torch

    words[:, 0] = 0
    words[end, 0] = 4
    positions[:, 0] = torch.arange(len(positions)) / steps


def configured(name: str, config: dict, **defaults):
    """A config of transformers' class `name`; what the caller says in `config` wins over `defaults`."""
    import transformers

    return getattr(transformers, name)(**{**defaults, **config})


def labels(names: dict[int, str] = LABELS) -> dict[str, dict]:
    """id2label and label2id of a config."""
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}}


def image_processor(name: str, **settings):
    """The class that needs no torchvision: `<name>Pil` in transformers 5, `<name>` in 4; both are saved as `name`."""
    import transformers

    made = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return made(**settings)


def square(side: int = SIDE) -> dict[str, int]:
    """A processor's exact size."""
    return {"height": side, "width": side}


def vit(folder: Path, head: str = "ViTForImageClassification", pooler: bool = True, **config) -> Path:
    """ViT, 4 x 4 patches. As `ViTModel` its features are those of the image, with or without the pooler."""
    import transformers

    made = configured("ViTConfig", config, **TRANSFORMER, image_size=SIDE, patch_size=8, **labels())
    extra = {"add_pooling_layer": pooler} if head == "ViTModel" else {}
    model = getattr(transformers, head)(made, **extra)
    return saved(folder, model, image_processor("ViTImageProcessor", size=square()))


def detr(folder: Path, head: str = "DetrForObjectDetection", **config) -> Path:
    """DETR over a ResNet, 8 queries; images keep their aspect ratio (short side 64, long side at most 96 pixels).

    `DetrForSegmentation` is the panoptic one. Its head divides d_model by 64, which is why that is the width here.
    """
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    made = configured(
        "DetrConfig",
        config,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=8,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        **labels(),
    )
    processor = image_processor("DetrImageProcessor", size={"shortest_edge": 64, "longest_edge": 96})
    return saved(
        folder,
        getattr(transformers, head)(made),
        processor,
        scale=0.15,
        times={"query_position": 20, "labels_classifier.weight": 3},
    )


def convnext(folder: Path, head: str = "ConvNextForImageClassification", **config) -> Path:
    """ConvNeXt: no patches, no attention; the short side to 36 pixels, then the middle 32."""
    import transformers

    made = configured(
        "ConvNextConfig", config, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, image_size=SIDE, **labels()
    )
    images = image_processor("ConvNextImageProcessor", size={"shortest_edge": SIDE}, crop_pct=0.875)
    return saved(folder, getattr(transformers, head)(made), images, times={"layer_scale": 3, "embeddings": 2})


def dinov2(folder: Path, head: str = "Dinov2Model", **config) -> Path:
    """DINOv2: features of the image; patches of 7 pixels where ViT has 8."""
    import transformers

    made = configured(
        "Dinov2Config",
        config,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=28,
        patch_size=7,
    )
    images = image_processor("BitImageProcessor", size={"shortest_edge": SIDE}, crop_size=square(28))
    return saved(folder, getattr(transformers, head)(made), images)


def yolos(folder: Path, **config) -> Path:
    """YOLOS: a ViT with 8 detection tokens; images keep their proportions, at most 96 pixels long."""
    import transformers

    made = configured(
        "YolosConfig", config, **TRANSFORMER, **labels(), image_size=[64, 96], patch_size=16, num_detection_tokens=8
    )
    images = image_processor("YolosImageProcessor", size={"shortest_edge": 64, "longest_edge": 96})
    return saved(folder, transformers.YolosForObjectDetection(made), images)


def segformer(folder: Path, head: str = "SegformerForSemanticSegmentation", **config) -> Path:
    """SegFormer: a class for each pixel, decided on a quarter of the side."""
    import transformers

    made = configured(
        "SegformerConfig",
        config,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1] * 4,
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
        **labels(),
    )
    return saved(folder, getattr(transformers, head)(made), image_processor("SegformerImageProcessor", size=square()))


def dpt(folder: Path, **config) -> Path:
    """DPT: a depth for each pixel of a 32 x 32 image, above a ViT of four layers."""
    import transformers

    made = configured(
        "DPTConfig",
        config,
        **{**TRANSFORMER, "num_hidden_layers": 4},
        image_size=SIDE,
        patch_size=8,
        is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
    )
    images = image_processor("DPTImageProcessor", size=square())
    return saved(folder, transformers.DPTForDepthEstimation(made), images, scale=0.2)


def videomae(folder: Path, **config) -> Path:
    """VideoMAE: four frames of 32 x 32 pixels at once."""
    import transformers

    made = configured(
        "VideoMAEConfig",
        config,
        **TRANSFORMER,
        **labels(),
        image_size=SIDE,
        patch_size=16,
        num_frames=4,
        tubelet_size=2,
    )
    images = image_processor("VideoMAEImageProcessor", size={"shortest_edge": SIDE}, crop_size=square())
    return saved(folder, transformers.VideoMAEForVideoClassification(made), images)


def superglue(folder: Path, **config) -> Path:
    """SuperPoint finds corners in two pictures, SuperGlue pairs them."""
    import transformers

    finder = transformers.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 16], decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=32
    )
    made = configured(
        "SuperGlueConfig",
        config,
        keypoint_detector_config=finder,
        hidden_size=HIDDEN,
        keypoint_encoder_sizes=[16, 32],
        gnn_layers_types=["self", "cross"],
        num_attention_heads=4,
        sinkhorn_iterations=5,
        matching_threshold=0.0,
    )
    images = image_processor("SuperGlueImageProcessor", size=square(64))
    return saved(folder, transformers.SuperGlueForKeypointMatching(made), images)
