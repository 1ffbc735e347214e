"""Detectors of transformers that load without torchvision and timm: what they find in an image, under the names that prompts use.

    mask2former                   instances with masks, classes of COCO   facebook/mask2former-swin-small-coco-instance, as GenEval's own
    rt_detr, rt_detr_v2, d_fine   boxes, classes of COCO                  PekingU/rtdetr_r50vd, ustc-community/dfine-medium-coco
    owlv2                         boxes of whatever is named to it        google/owlv2-base-patch16-ensemble

Left out: DETR, whose published weights want timm; Grounding DINO, which scores phrases and not things. Frozen, float32, no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import (
    DFineForObjectDetection,
    Mask2FormerForUniversalSegmentation,
    Owlv2ForObjectDetection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RTDetrForObjectDetection,
    RTDetrV2ForObjectDetection,
)

from .found import Box, Found
from .pixels import DetectorPixels

Image = Float[Tensor, "3 H W"]
ALSO_CALLED = {"computer mouse": "mouse", "computer keyboard": "keyboard", "tv remote": "remote"}
"""Names in GenEval's prompts, and those of the same classes in COCO."""
QUERY = "a photo of a {}"
"""How a thing is named to OWLv2, as its authors do."""


@dataclass(frozen=True)
class Detector:
    """A model in evaluation mode; `classes` are the names it knows by their numbers, None where it looks for any, which `tokenizer` reads."""

    model: PreTrainedModel
    pixels: DetectorPixels
    classes: dict[int, str] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    @torch.no_grad()
    def find(self, image: Image, things: Sequence[str], threshold: float) -> list[Found]:
        """All of `things` in an image in [0, 1] with scores above `threshold`, in pixels of that image."""
        look = LOOKS[self.model.config.model_type]
        return look(self, image, tuple(dict.fromkeys(things)), threshold)


def own_name(thing: str) -> str:
    """COCO's name of a thing."""
    return ALSO_CALLED.get(thing, thing)


def _boxes_of_classes(detector: Detector, image: Image, things: Sequence[str], threshold: float) -> list[Found]:
    """Each query of an RT-DETR or D-FINE may be any class, each with a probability of its own."""
    told = detector.model(pixel_values=detector.pixels(image[None]))
    scores, classes = told.logits[0].float().sigmoid(), _numbers(detector, things)
    return [
        Found(thing, float(scores[query, number]), _box(told.pred_boxes[0, query], image.shape[-2], image.shape[-1]))
        for number, thing in classes.items()
        for query in (scores[:, number] > threshold).nonzero()[:, 0].tolist()
    ]


def _named_boxes(detector: Detector, image: Image, things: Sequence[str], threshold: float) -> list[Found]:
    """Each box of an OWLv2 is the thing that fits it best, of those named; its image is padded to a square."""
    assert detector.tokenizer is not None
    text: Any = detector.model.config
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": text.text_config.max_position_embeddings, "return_tensors": "pt"}
    asked = detector.tokenizer([QUERY.format(thing) for thing in things], **options).to(detector.model.device)
    pixels = detector.pixels(image[None])
    told = detector.model(pixel_values=pixels, input_ids=asked["input_ids"], attention_mask=asked["attention_mask"])
    scores, best = told.logits[0].float().sigmoid().max(-1)
    side = max(image.shape[-2:])
    return [
        Found(things[int(best[query])], float(scores[query]), _box(told.pred_boxes[0, query], side, side))
        for query in (scores > threshold).nonzero()[:, 0].tolist()
    ]


def _masks_of_classes(detector: Detector, image: Image, things: Sequence[str], threshold: float) -> list[Found]:
    """A query of a Mask2Former counts by its class's probability times the mean probability of its mask."""
    told = detector.model(pixel_values=detector.pixels(image[None]))
    scores = told.class_queries_logits[0].float().softmax(-1)[:, :-1]
    found = []
    for number, thing in _numbers(detector, things).items():
        for query in (scores[:, number] > threshold).nonzero()[:, 0].tolist():
            logits = F.interpolate(told.masks_queries_logits[:1, query : query + 1].float(), image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
            mask = logits > 0
            sure = float(scores[query, number] * logits.sigmoid()[mask].mean()) if bool(mask.any()) else 0.0
            if sure > threshold:
                found.append(Found(thing, sure, _around(mask), mask.cpu()))
    return found


def _numbers(detector: Detector, things: Sequence[str]) -> dict[int, str]:
    """The numbers of the classes that are asked for."""
    assert detector.classes is not None
    wanted = {own_name(thing): thing for thing in things}
    return {number: wanted[name] for number, name in detector.classes.items() if name in wanted}


def _box(box: Tensor, height: int, width: int) -> Box:
    """From centre and size (4,) in parts of the image."""
    x, y, across, down = box.float().tolist()
    return (x - across / 2) * width, (y - down / 2) * height, (x + across / 2) * width, (y + down / 2) * height


def _around(mask: Tensor) -> Box:
    """The smallest box around the pixels of a mask."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


Look = Callable[[Detector, Image, Sequence[str], float], list[Found]]
LOOKS: dict[str, Look] = {
    "mask2former": _masks_of_classes,
    "rt_detr": _boxes_of_classes,
    "rt_detr_v2": _boxes_of_classes,
    "d_fine": _boxes_of_classes,
    "owlv2": _named_boxes,
}
MODELS: dict[str, type[PreTrainedModel]] = {
    "mask2former": Mask2FormerForUniversalSegmentation,
    "rt_detr": RTDetrForObjectDetection,
    "rt_detr_v2": RTDetrV2ForObjectDetection,
    "d_fine": DFineForObjectDetection,
    "owlv2": Owlv2ForObjectDetection,
}
