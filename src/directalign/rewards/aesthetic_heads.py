"""The published heads of aesthetic predictors: which one a file holds, its layers, and which model gives the features it reads.

Layouts: github.com/LAION-AI/aesthetic-predictor, christophschuhmann/improved-aesthetic-predictor, discus0434/aesthetic-predictor-v2-5.
Left out: improved-aesthetic-predictor's earlier head with ReLUs (ava+logos-l14-reluMSE.pth), which its authors replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CLIPModel, PreTrainedModel, SiglipModel

from ..types import DirectAlignError
from .published import Shapes
from .scoring_heads import linear_layers


@dataclass(frozen=True)
class HeadLayout:
    """A published head: the layers of its file (`numbers` after `prefix`, or one bare layer), and the model under it."""

    called: str
    prefix: str
    numbers: tuple[int, ...]
    backbone: type[PreTrainedModel]
    made_for: str

    @property
    def first(self) -> str:
        """The tensor whose last size is the number of features that the head reads."""
        return f"{self.prefix}.{self.numbers[0]}.weight" if self.numbers else "weight"

    def build(self, width: int, shapes: Shapes) -> nn.Module:
        """The head on `width` features, (b, width) to (b, 1), its inner sizes from `shapes`."""
        return linear_layers(self.prefix, self.numbers, width, shapes) if self.numbers else nn.Linear(width, 1)


LINEAR = HeadLayout("LAION linear aesthetic head", "", (), CLIPModel, "openai/clip-vit-large-patch14")
IMPROVED = HeadLayout("LAION improved aesthetic head", "layers", (0, 2, 4, 6, 7), CLIPModel, "openai/clip-vit-large-patch14")
V2_5 = HeadLayout("v2.5 aesthetic head", "scoring_head", (0, 2, 4, 6, 8), SiglipModel, "google/siglip-so400m-patch14-384")
FILES = "sa_0_4_vit_l_14_linear.pth, sac+logos+ava1-l14-linearMSE.pth or aesthetic_predictor_v2_5.pth"


def recognise(shapes: Shapes, file: Path, key: str) -> HeadLayout:
    """Which head a file holds, by the names of its tensors; DirectAlignError, which blames `key`, where it is none."""
    for layout in (IMPROVED, V2_5):
        if any(name.startswith(f"{layout.prefix}.") for name in shapes):
            return layout
    if shapes.keys() & {"weight", "bias"}:
        return LINEAR
    raise DirectAlignError(f"{key}: {file}: no aesthetic head (it holds {next(iter(shapes))}); give the file of a head: {FILES}")


def features_of(layout: HeadLayout, model_config: Any) -> int:
    """How many features a backbone gives."""
    return model_config.vision_config.hidden_size if layout is V2_5 else model_config.projection_dim


def require_width(layout: HeadLayout, shapes: Shapes, width: int, file: Path, backbone: str, key: str) -> None:
    """Refuse a head that reads another number of features than its backbone gives; `key` is where the reward stands."""
    shape = shapes.get(layout.first, (width,))
    if shape and shape[-1] != width:
        raise DirectAlignError(
            f"{key}.backbone: {backbone}: gives {width} features, and {file}, a {layout.called}, reads {shape[-1]}; "
            f"name the backbone it was made for, as {layout.made_for}"
        )
