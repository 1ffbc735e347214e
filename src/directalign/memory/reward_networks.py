"""The rewards' networks that no library has, from their settings: towers with the heads and cross models on top, as rewards/ puts them together.

A settings' `inner` are the widths between the linear layers of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    Qwen2VLConfig,
    Qwen2VLModel,
    SiglipConfig,
    SiglipModel,
)

from ..rewards.aesthetic import Predictor
from ..rewards.hpsv3 import head_of
from ..rewards.image_reward import Blip
from ..rewards.mps import CrossModel, MpsModel

Settings = Mapping[str, Any]


class Hpsv3(nn.Module):
    """A Qwen2-VL without its vocabulary's head, and the head of the score."""

    def __init__(self, model: Qwen2VLModel, head: nn.Sequential) -> None:
        super().__init__()
        self.model, self.head = model, head


def _blip(settings: Settings) -> Blip:
    vision, text = BlipVisionConfig(**settings["vision"]), BlipTextConfig(**settings["text"])
    return Blip(
        BlipVisionModel(vision),
        BlipTextModel(text, add_pooling_layer=False),
        _linear(text.hidden_size, settings["inner"]),
    )


def _clip_predictor(settings: Settings) -> Predictor:
    model = CLIPModel(CLIPConfig.from_dict(settings["backbone"]))
    return Predictor(
        model.vision_model,
        model.visual_projection,
        _linear(model.visual_projection.out_features, settings["inner"]),
    )


def _siglip_predictor(settings: Settings) -> Predictor:
    model = SiglipModel(SiglipConfig.from_dict(settings["backbone"]))
    return Predictor(
        model.vision_model,
        nn.Identity(),
        _linear(model.vision_model.config.hidden_size, settings["inner"]),
    )


def _mps(settings: Settings) -> MpsModel:
    return MpsModel(
        CLIPModel(CLIPConfig.from_dict(settings["clip"])), CrossModel(**settings["cross"])
    )


def _hpsv3(settings: Settings) -> Hpsv3:
    told = Qwen2VLConfig.from_dict(dict(settings))
    return Hpsv3(Qwen2VLModel(told), head_of(told))


def _linear(width: int, inner: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(given, made) for given, made in pairwise([width, *inner, 1])))


OWN: dict[str, Callable[[Settings], nn.Module]] = {
    "Blip": _blip,
    "ClipPredictor": _clip_predictor,
    "SiglipPredictor": _siglip_predictor,
    "Mps": _mps,
    "Hpsv3": _hpsv3,
}
"""By the class name of a `Part`."""
