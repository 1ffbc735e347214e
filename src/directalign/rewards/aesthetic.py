"""Aesthetic predictors: a published head on the unit image features of a CLIP or a SigLIP.

score = head(features), trained on ratings from 1 to 10, larger is better, unbounded. The file's
tensors identify the head:
weight, bias            LAION v1   sa_0_4_vit_l_14_linear.pth         CLIP ViT-L/14, projected
layers.0 2 4 6 7        LAION v2   sac+logos+ava1-l14-linearMSE.pth   the same; photos about 5
scoring_head.0 2 4 6 8  v2.5       aesthetic_predictor_v2_5.pth       SigLIP SO400M/14-384
Good photos are above 6 with LAION v2, above 5.5 with v2.5. All heads are affine in the features.
The prompt is ignored, so only the absolute form is possible. Layouts: github.com/LAION-AI/
aesthetic-predictor, christophschuhmann/improved-aesthetic-predictor, discus0434/
aesthetic-predictor-v2-5. Not supported: the earlier head with ReLUs (ava+logos-l14-reluMSE.pth),
which its authors replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedModel, SiglipModel

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from . import weights as files
from .common import BaseReward, Device, Preprocessing, recompute

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
    weight_file = (
        "no file of weights; give the head's own file (.pth), and the model under it as "
        "{key}.backbone"
    )

    def __init__(self, model: Predictor, preprocessing: Preprocessing, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.preprocessing, self.scale = preprocessing, scale

    @classmethod
    def _load(cls, settings: config.AestheticConfig, device: Device, key: str) -> AestheticReward:
        file = files.locate(settings.path, f"{key}.path")
        weights = files.read_weights(file, f"{key}.path")
        shapes = files.shapes_of(weights)
        layout = recognise(shapes, file, f"{key}.path")
        folder = files.locate(
            settings.backbone, f"{key}.backbone", (*SETTINGS, *files.FOLDER_WEIGHTS)
        )
        files.check_folder(folder, f"{key}.backbone", layout.backbone)
        head, preprocessing = _described(layout, shapes, folder, file, settings, key)
        head.load_state_dict(weights)
        backbone: Any = files.load_model(layout.backbone, folder, f"{key}.backbone")
        model = Predictor(backbone.vision_model, layout.projection(backbone), head)
        recompute(model, settings.gradient_checkpointing)
        return cls(model.to(device), preprocessing, settings.scale)

    @classmethod
    def meta(cls, settings: config.AestheticConfig, key: str, configs: Any) -> AestheticReward:
        file, layout, shapes = configs.file(settings.path, f"{key}.path"), None, None
        kinds: tuple[str, ...] = ("laion", "clip", "siglip")
        if file is not None:
            shapes = files.read_shapes(file, f"{key}.path")
            layout = recognise(shapes, file, f"{key}.path")
            kinds = ("siglip",) if layout is V2_5 else ("laion", "clip")
        found = configs.read(settings.backbone, f"{key}.backbone", *kinds)
        if layout is None:
            kind = found.get("_class_name", found.get("model_type"))
            layout = V2_5 if kind in ("SiglipModel", "siglip") else IMPROVED
        model_class: Any = layout.backbone
        backbone = model_class(model_class.config_class.from_dict(found))
        width = layout.features(backbone.config)
        head = files.plain_layers(width, INNER) if shapes is None else layout.build(width, shapes)
        model = Predictor(backbone.vision_model, layout.projection(backbone), head)
        recompute(model, settings.gradient_checkpointing)
        reader = settings.processor or settings.backbone
        folder = configs.image_settings(configs.folder(reader, "preprocessor_config.json"))
        preprocessing = Preprocessing.of(folder, backbone.config.vision_config.image_size)
        return cls(model, preprocessing, settings.scale)

    @classmethod
    def _check(cls, settings: config.AestheticConfig, key: str, online: bool) -> None:
        file = files.check_published(settings.path, f"{key}.path", online)
        local = not hub.is_hub_id(settings.backbone)
        folder = files.locate_offline(settings.backbone, f"{key}.backbone", SETTINGS, online)
        if file is None:
            return
        shapes = files.read_shapes(file, f"{key}.path")
        layout = recognise(shapes, file, f"{key}.path")
        if folder is None:
            return
        if local:
            files.check_folder(folder, f"{key}.backbone", layout.backbone)
        _described(layout, shapes, folder, file, settings, key, online)

    def encode(self, images: Images) -> Features:
        """Images (b, 3, h, w) in [0, 1], any size, to unit features (b, d)."""
        dtype = next(self.model.parameters()).dtype
        return self.model.encode_image(self.preprocessing(images.to(dtype)))

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · head(features), about 1 to 10 at scale 1; `prompts` are ignored."""
        del prompts
        return self.scale * self.model(features)


@dataclass(frozen=True)
class HeadLayout:
    """A published head: layers (`numbers` after `prefix`, or one bare layer) and backbone."""

    title: str
    prefix: str
    numbers: tuple[int, ...]
    backbone: type[PreTrainedModel]
    made_for: str

    def build(self, width: int, shapes: files.Shapes) -> nn.Module:
        """The head on `width` features, (b, width) to (b, 1), with inner sizes from `shapes`."""
        if not self.numbers:
            return nn.Linear(width, 1)
        return files.linear_layers(self.prefix, self.numbers, width, shapes)

    def features(self, model_config: Any) -> int:
        """Number of features that the backbone outputs."""
        siglip = self.backbone is SiglipModel
        return model_config.vision_config.hidden_size if siglip else model_config.projection_dim

    def projection(self, backbone: Any) -> nn.Module:
        """The layer between the pooled output and the head."""
        return nn.Identity() if self.backbone is SiglipModel else backbone.visual_projection


INNER = (1024, 128, 64, 16)
"""Widths inside the published heads."""
VIT_L = "openai/clip-vit-large-patch14"
LINEAR = HeadLayout("LAION linear aesthetic head", "", (), CLIPModel, VIT_L)
IMPROVED = HeadLayout("LAION improved aesthetic head", "layers", (0, 2, 4, 6, 7), CLIPModel, VIT_L)
V2_5 = HeadLayout(
    "v2.5 aesthetic head",
    "scoring_head",
    (0, 2, 4, 6, 8),
    SiglipModel,
    "google/siglip-so400m-patch14-384",
)


def recognise(shapes: files.Shapes, file: Path, key: str) -> HeadLayout:
    """The head that a file holds, by its tensors' names. Raises DirectAlignError for none."""
    for layout in (IMPROVED, V2_5):
        if any(name.startswith(f"{layout.prefix}.") for name in shapes):
            return layout
    if shapes.keys() & {"weight", "bias"}:
        return LINEAR
    raise DirectAlignError(
        f"{key}: {file}: no aesthetic head (it holds {next(iter(shapes))}); give the file of a "
        "head: sa_0_4_vit_l_14_linear.pth, sac+logos+ava1-l14-linearMSE.pth or "
        "aesthetic_predictor_v2_5.pth"
    )


def _described(
    layout: HeadLayout,
    shapes: files.Shapes,
    folder: Path,
    file: Path,
    settings: config.AestheticConfig,
    key: str,
    online: bool = True,
) -> tuple[nn.Module, Any]:
    """The head without weights, and the image settings, checked with the backbone's config.

    LAION's heads were trained with torchvision's centre crop. No image settings if `processor` is
    on the hub and not `online`.
    """
    found = files.read_config(layout.backbone, folder, f"{key}.backbone")
    width = layout.features(found)
    first = f"{layout.prefix}.{layout.numbers[0]}.weight" if layout.numbers else "weight"
    shape = shapes.get(first, (width,))
    if shape and shape[-1] != width:
        raise DirectAlignError(
            f"{key}.backbone: {settings.backbone}: gives {width} features, and {file}, a "
            f"{layout.title}, reads {shape[-1]}; name the backbone it was made for, as "
            f"{layout.made_for}"
        )
    head = layout.build(width, shapes)
    wanted = files.shapes_of(head.state_dict())
    files.check_tensors(wanted, shapes, file, f"{key}.path", layout.title)
    reader = files.reader_folder(settings, folder, key, online, SETTINGS)
    if reader is None:
        return head, None
    preprocessing = Preprocessing.read(reader)
    part = "backbone" if settings.processor is None else "processor"
    files.check_side(found.vision_config.image_size, preprocessing, f"{key}.{part}: {reader}")
    return head, replace(preprocessing, rounded_centre=layout is not V2_5)
