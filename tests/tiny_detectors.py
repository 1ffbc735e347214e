"""Tiny random detectors as complete transformers folders: config, weights and image settings as
their makers publish them, a few hundred kB each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SwinConfig,
)

from tools.build_toyworld.tokenizers import clip_tokenizer

CLASSES = ("person", "dog", "mouse", "wine glass", "bench", "cat")
"""Of COCO, under its own names."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP_COLORS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "rt_detr": {
        "image_processor_type": "RTDetrImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_normalize": False,
        "do_pad": False,
        **IMAGENET,
    },
    "mask2former": {
        "image_processor_type": "Mask2FormerImageProcessor",
        "size": {"shortest_edge": 64, "longest_edge": 96},
        "size_divisor": 32,
        **IMAGENET,
    },
    "owlv2": {
        "image_processor_type": "Owlv2ImageProcessor",
        "size": {"height": 48, "width": 48},
        "do_pad": True,
        **CLIP_COLORS,
    },
}
SETTINGS |= {"rt_detr_v2": SETTINGS["rt_detr"], "d_fine": SETTINGS["rt_detr"]}
SAME = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "resample": 2,
}


def write_detector(folder: Path, kind: str, seed: int = 0) -> Path:
    """A model of that kind, random, in evaluation sizes of some 64 pixels."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    MODELS[kind]().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**SAME, **SETTINGS[kind]}))
    if kind == "owlv2":
        clip_tokenizer().save_pretrained(folder)
    return folder


def _labels() -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: place for place, name in enumerate(CLASSES)},
    }


def _detr(**more: Any) -> dict[str, Any]:
    """Sizes that RT-DETR, its second version and D-FINE have in common."""
    widths: dict[str, Any] = {"d_model": 16, "encoder_hidden_dim": 16}
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_queries": 12,
        "num_denoising": 0,
    }
    feeds = {
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "encoder_in_channels": [16, 24, 32],
        "decoder_in_channels": [16, 16, 16],
    }
    return {**widths, **layers, **feeds, **_labels(), **more}


def _resnet() -> RTDetrResNetConfig:
    return RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def rt_detr() -> PreTrainedModel:
    """On its own ResNet."""
    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=_resnet(), **_detr()))


def rt_detr_v2() -> PreTrainedModel:
    """On the same ResNet."""
    return RTDetrV2ForObjectDetection(RTDetrV2Config(backbone_config=_resnet(), **_detr()))


def d_fine() -> PreTrainedModel:
    """On the same ResNet: the published ones have an HGNet-V2."""
    return DFineForObjectDetection(DFineConfig(backbone_config=_resnet(), **_detr()))


def mask2former() -> PreTrainedModel:
    """On a Swin of four stages."""
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=[f"stage{n}" for n in range(1, 5)],
    )
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 24,
        "dim_feedforward": 24,
    }
    layers = {"encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2, "num_queries": 12}
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=swin, **sizes, **layers, **_labels())
    )


def owlv2() -> PreTrainedModel:
    """Two layers a side, 3 x 3 patches."""
    tokenizer = clip_tokenizer()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**sizes, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    return Owlv2ForObjectDetection(
        Owlv2Config(
            text_config=text,
            vision_config={**sizes, "image_size": 48, "patch_size": 16},
            projection_dim=16,
        )
    )


MODELS = {
    "rt_detr": rt_detr,
    "rt_detr_v2": rt_detr_v2,
    "d_fine": d_fine,
    "mask2former": mask2former,
    "owlv2": owlv2,
}
