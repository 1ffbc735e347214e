"""Aesthetic predictors: a published head on the unit image features of a CLIP (LAION) or a SigLIP (Aesthetic Predictor v2.5).

score = head(features), trained on ratings from 1 to 10, larger is better, unbounded. The file's tensors identify the head:
weight, bias             LAION v1    sa_0_4_vit_l_14_linear.pth         on CLIP ViT-L/14's projected features
layers.0 2 4 6 7         LAION v2    sac+logos+ava1-l14-linearMSE.pth   same; ordinary photos about 5, good ones above 6
scoring_head.0 2 4 6 8   v2.5        aesthetic_predictor_v2_5.pth       on SigLIP SO400M/14 at 384, pooled; 5.5 and above is great
All are affine in the features. The prompt is ignored, so only the absolute form is possible. Layouts:
github.com/LAION-AI/aesthetic-predictor, christophschuhmann/improved-aesthetic-predictor, discus0434/aesthetic-predictor-v2-5.
Not supported: the earlier head with ReLUs (ava+logos-l14-reluMSE.pth), which its authors replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, CLIPModel, PreTrainedModel, SiglipModel

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, Preprocessing, recompute
from .weights import (
    FOLDER_WEIGHTS,
    UNREADABLE,
    Shapes,
    check_folder,
    check_published,
    check_tensors,
    first_line,
    is_weight_file,
    linear_layers,
    load_model,
    locate,
    plain_layers,
    read_shapes,
    read_weights,
    shapes_of,
)

SETTINGS = ("*config.json",)
Features = Float[Tensor, "b d"]


class Predictor(nn.Module):
    """Image tower, projection and head."""

    def __init__(self, tower: nn.Module, projection: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection, self.head = tower, projection, head

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Features:
        """Unit features (b, d) of preprocessed images."""
        return F.normalize(self.projection(self.tower(pixel_values=pixels).pooler_output), dim=-1)

    def forward(self, features: Features) -> PerSample:
        """Head output (b,)."""
        return self.head(features)[:, 0]


class AestheticReward(BaseReward):
    """A frozen aesthetic predictor (`interfaces.Reward`), which ignores prompts."""

    name = "aesthetic"
    reads_prompt = False
    file_keys = ("path", "backbone", "processor")

    def __init__(self, model: Predictor, preprocessing: Preprocessing, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.preprocessing, self.scale = preprocessing, scale

    @classmethod
    def from_config(
        cls,
        settings: config.AestheticConfig,
        device: torch.device | str = "cpu",
        key: str = "reward",
    ) -> AestheticReward:
        """The reward of a recipe section, float32; errors name `key`, the section's place in the recipe."""
        file = _head_file(settings, key)
        weights = read_weights(file, f"{key}.path")
        shapes = shapes_of(weights)
        layout = recognise(shapes, file, f"{key}.path")
        folder = locate(settings.backbone, f"{key}.backbone", (*SETTINGS, *FOLDER_WEIGHTS))
        check_folder(folder, f"{key}.backbone", layout.backbone)
        head, side = _fitting(layout, shapes, folder, file, settings, key)
        preprocessing = _images(layout, side, folder, settings, key)
        head.load_state_dict(weights)
        model = Predictor(*_tower(layout, folder, f"{key}.backbone"), head)
        if settings.gradient_checkpointing:
            recompute(model)
        return cls(model.to(device), preprocessing, settings.scale)

    @classmethod
    def meta(cls, settings: config.AestheticConfig, key: str, configs: Any) -> AestheticReward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        file, layout, shapes = configs.file(settings.path, f"{key}.path"), None, None
        kinds: tuple[str, ...] = ("laion", "clip", "siglip")
        if file is not None:
            shapes = read_shapes(file, f"{key}.path")
            layout = recognise(shapes, file, f"{key}.path")
            kinds = ("siglip",) if layout is V2_5 else ("laion", "clip")
        found = configs.read(settings.backbone, f"{key}.backbone", *kinds)
        if layout is None:
            kind = found.get("_class_name", found.get("model_type"))
            layout = V2_5 if kind in ("SiglipModel", "siglip") else IMPROVED
        backbone: Any = layout.backbone
        backbone = backbone(backbone.config_class.from_dict(found))
        width = features_of(layout, backbone.config)
        head = layout.build(width, shapes) if shapes is not None else plain_layers(width, INNER)
        projection = nn.Identity() if layout is V2_5 else backbone.visual_projection
        model = Predictor(backbone.vision_model, projection, head)
        if settings.gradient_checkpointing:
            recompute(model)
        reader = settings.processor or settings.backbone
        folder = configs.image_settings(configs.folder(reader, "preprocessor_config.json"))
        preprocessing = Preprocessing.of(folder, backbone.config.vision_config.image_size)
        return cls(model, preprocessing, settings.scale)

    @classmethod
    def check(
        cls, settings: config.AestheticConfig, key: str = "reward", online: bool = False
    ) -> None:
        """Check the head's tensor shapes against the backbone's config; fetch a repository's settings if `online`."""
        _require_file(settings, key)
        check_published(settings.path, f"{key}.path", online)
        here = not hub.is_hub_id(settings.backbone)
        folder = locate(settings.backbone, f"{key}.backbone", SETTINGS) if online or here else None
        if hub.is_hub_file(settings.path):
            return
        file = _head_file(settings, key)
        shapes = read_shapes(file, f"{key}.path")
        layout = recognise(shapes, file, f"{key}.path")
        if folder is None:
            return
        if here:
            check_folder(folder, f"{key}.backbone", layout.backbone)
        _, side = _fitting(layout, shapes, folder, file, settings, key)
        if online or settings.processor is None or not hub.is_hub_id(settings.processor):
            _images(layout, side, folder, settings, key)

    @property
    def image_size(self) -> int:
        return self.preprocessing.crop[0]

    @property
    def tokens_per_image(self) -> int:
        return self.model.tower.embeddings.num_positions  # pyright: ignore

    def encode(self, images: Images) -> Features:
        """Images (b, 3, h, w) in [0, 1], any size, to unit features (b, d)."""
        return self.model.encode_image(
            self.preprocessing(images.to(next(self.model.parameters()).dtype))
        )

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · head(features), about 1 to 10 at scale 1; `prompts` are ignored."""
        del prompts
        return self.scale * self.model(features)


def _fitting(
    layout: HeadLayout,
    shapes: Shapes,
    folder: Path,
    file: Path,
    settings: config.AestheticConfig,
    key: str,
) -> tuple[nn.Module, int]:
    """The head without weights, checked against its file and the backbone's config, and the image side in pixels."""
    described = _described(layout, folder, f"{key}.backbone")
    width = features_of(layout, described)
    require_width(layout, shapes, width, file, settings.backbone, key)
    head = layout.build(width, shapes)
    check_tensors(
        shapes_of(head.state_dict()),
        shapes,
        file,
        f"{key}.path",
        layout.called,
    )
    return head, described.vision_config.image_size


def _described(layout: HeadLayout, folder: Path, key: str) -> Any:
    kind = layout.backbone.config_class
    assert kind is not None
    try:
        described: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise DirectAlignError(
            f"{key}: {folder}: its config.json cannot be read ({first_line(error)}); copy it again"
        ) from error
    if not isinstance(described, kind):
        raise DirectAlignError(
            f"{key}: {folder}: holds a model of type {described.model_type}; give the folder of a transformers {layout.backbone.__name__}"
        )
    return described


def _images(
    layout: HeadLayout, side: int, folder: Path, settings: config.AestheticConfig, key: str
) -> Preprocessing:
    """Image settings; LAION's heads were trained with torchvision's centre crop."""
    named = "backbone" if settings.processor is None else "processor"
    reader = (
        folder
        if settings.processor is None
        else locate(settings.processor, f"{key}.processor", SETTINGS)
    )
    preprocessing = Preprocessing.read(reader)
    if preprocessing.crop != (side, side):
        rows, columns = preprocessing.crop
        raise DirectAlignError(
            f"{key}.{named}: {reader}: its images are {rows} x {columns} and the model reads {side} x {side}; name its own processor"
        )
    return replace(preprocessing, rounded_centre=layout is not V2_5)


def _tower(layout: HeadLayout, folder: Path, key: str) -> tuple[nn.Module, nn.Module]:
    """The image tower with pooled output, and the projection after it."""
    model: Any = load_model(layout.backbone, folder, key)
    return model.vision_model, nn.Identity() if layout is V2_5 else model.visual_projection


def _head_file(settings: config.AestheticConfig, key: str) -> Path:
    _require_file(settings, key)
    return locate(settings.path, f"{key}.path", ())


def _require_file(settings: config.AestheticConfig, key: str) -> None:
    if not is_weight_file(settings.path):
        raise DirectAlignError(
            f"{key}.path: {settings.path}: no file of weights; give the head's own file (.pth), and the model under it as {key}.backbone"
        )


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
        return (
            linear_layers(self.prefix, self.numbers, width, shapes)
            if self.numbers
            else nn.Linear(width, 1)
        )


LINEAR = HeadLayout(
    "LAION linear aesthetic head", "", (), CLIPModel, "openai/clip-vit-large-patch14"
)
IMPROVED = HeadLayout(
    "LAION improved aesthetic head",
    "layers",
    (0, 2, 4, 6, 7),
    CLIPModel,
    "openai/clip-vit-large-patch14",
)
V2_5 = HeadLayout(
    "v2.5 aesthetic head",
    "scoring_head",
    (0, 2, 4, 6, 8),
    SiglipModel,
    "google/siglip-so400m-patch14-384",
)
INNER = (1024, 128, 64, 16)
"""Widths inside the published heads."""
FILES = (
    "sa_0_4_vit_l_14_linear.pth, sac+logos+ava1-l14-linearMSE.pth or aesthetic_predictor_v2_5.pth"
)


def recognise(shapes: Shapes, file: Path, key: str) -> HeadLayout:
    """Which head a file holds, by the names of its tensors; DirectAlignError, which blames `key`, where it is none."""
    for layout in (IMPROVED, V2_5):
        if any(name.startswith(f"{layout.prefix}.") for name in shapes):
            return layout
    if shapes.keys() & {"weight", "bias"}:
        return LINEAR
    raise DirectAlignError(
        f"{key}: {file}: no aesthetic head (it holds {next(iter(shapes))}); give the file of a head: {FILES}"
    )


def features_of(layout: HeadLayout, model_config: Any) -> int:
    """How many features a backbone gives."""
    return model_config.vision_config.hidden_size if layout is V2_5 else model_config.projection_dim


def require_width(
    layout: HeadLayout, shapes: Shapes, width: int, file: Path, backbone: str, key: str
) -> None:
    """Refuse a head that reads another number of features than its backbone gives; `key` is where the reward stands."""
    shape = shapes.get(layout.first, (width,))
    if shape and shape[-1] != width:
        raise DirectAlignError(
            f"{key}.backbone: {backbone}: gives {width} features, and {file}, a {layout.called}, reads {shape[-1]}; "
            f"name the backbone it was made for, as {layout.made_for}"
        )
