"""Tiny random detectors as complete transformers folders: config, weights and image settings as
their makers publish them, a few hundred kB each. Sizes are in `tiny_sizes.json`."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tiny import SIZES, token_ids
from tools.build_toyworld.spec import SPECS
from tools.build_toyworld.tokenizers import clip_tokenizer

CLASSES = ("person", "dog", "mouse", "wine glass", "bench", "cat")
"""Of COCO, under its own names."""
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: place for place, name in enumerate(CLASSES)},
}
DETRS = {"rt_detr": "RTDetr", "rt_detr_v2": "RTDetrV2", "d_fine": "DFine"}
KINDS = (*DETRS, "mask2former", "owlv2")


def write_detector(folder: Path, kind: str, seed: int = 0) -> Path:
    """A model of that kind, random, in evaluation sizes of some 64 pixels."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    make_detector(kind).save_pretrained(folder)
    settings = SIZES["detr_processor" if kind in DETRS else f"{kind}_processor"]
    settings = SIZES["detector_processor"] | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if kind == "owlv2":
        clip_tokenizer(SPECS["world"]).save_pretrained(folder)
    return folder


def make_detector(kind: str) -> PreTrainedModel:
    """RT-DETR, its second version and D-FINE on one ResNet (the published D-FINE has an HGNet-V2),
    Mask2Former on a Swin of four stages, or OWLv2 with 3 x 3 patches."""
    if kind in DETRS:
        backbone = transformers.RTDetrResNetConfig(**SIZES["detr_backbone"])
        config = getattr(transformers, f"{DETRS[kind]}Config")
        settings = config(backbone_config=backbone, **SIZES["detr"], **LABELS)
        return getattr(transformers, f"{DETRS[kind]}ForObjectDetection")(settings)
    if kind == "mask2former":
        swin = transformers.SwinConfig(**SIZES["mask2former_backbone"])
        settings = transformers.Mask2FormerConfig(
            backbone_config=swin, **SIZES["mask2former"], **LABELS
        )
        return transformers.Mask2FormerForUniversalSegmentation(settings)
    tokenizer = clip_tokenizer(SPECS["world"])
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    settings = transformers.Owlv2Config(
        text_config=SIZES["owlv2"] | token_ids(tokenizer) | words,
        vision_config=SIZES["owlv2"] | {"image_size": 48, "patch_size": 16},
        projection_dim=16,
    )
    return transformers.Owlv2ForObjectDetection(settings)
