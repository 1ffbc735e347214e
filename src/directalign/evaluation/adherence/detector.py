"""Detectors of transformers that need neither torchvision nor timm.

    mask2former           masks, COCO classes       facebook/mask2former-swin-small-coco-instance
    rt_detr, rt_detr_v2   boxes, COCO classes       PekingU/rtdetr_r50vd
    d_fine                boxes, COCO classes       ustc-community/dfine-medium-coco
    owlv2                 boxes of any named class  google/owlv2-base-patch16-ensemble

Left out: DETR, whose published weights need timm; Grounding DINO, which scores phrases instead of
classes. Frozen, float32, no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor

from ... import config
from ...io import hub
from ...io.image_settings import read_settings
from ...rewards import weights
from ...rewards.clip import ClipReward
from ...rewards.common import read_json
from ...types import DirectAlignError, Images
from ..eval_prompts import PromptRow
from .geneval import Box, Found, Judged, Limits, judge

Image = Float[Tensor, "3 H W"]
Pixels = Float[Tensor, "b 3 rows columns"]

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = (
    "a photo of a {color} {thing}",
    "a photo of a {color}-colored {thing}",
    "a photo of a {color} object",
)
GREY = 0.6
"""Level that replaces the surroundings of a thing."""


class ColorReader:
    """Names colours with a frozen CLIP; text features are computed once per class."""

    def __init__(self, clip: ClipReward) -> None:
        self.clip = clip
        self._text_features: dict[str, Float[Tensor, "c d"]] = {}

    @torch.no_grad()
    def read(self, image: Image, things: Sequence[Found], thing: str) -> list[str]:
        """The colour, of `COLORS`, of each of `things`, which are of class `thing`."""
        if thing not in self._text_features:
            phrases = [each.format(color=c, thing=thing) for c in COLORS for each in TEMPLATES]
            encoded = self.clip.encode_text(phrases).reshape(len(COLORS), len(TEMPLATES), -1)
            self._text_features[thing] = F.normalize(encoded.mean(1), dim=-1)
        features = torch.cat([self.clip.encode(crop(image, each)[None]) for each in things])
        best = (features @ self._text_features[thing].T).argmax(1)
        return [COLORS[place] for place in best.tolist()]


def crop(image: Image, found: Found) -> Float[Tensor, "3 rows columns"]:
    """The thing's box, clipped to the image and at least one pixel large, grey outside its mask."""
    height, width = image.shape[-2:]
    left, top, right, bottom = found.box
    first_x, first_y = (
        min(max(math.floor(start), 0), size - 1) for start, size in ((left, width), (top, height))
    )
    end_x = max(min(math.ceil(right), width), first_x + 1)
    end_y = max(min(math.ceil(bottom), height), first_y + 1)
    if found.mask is not None:
        image = torch.where(found.mask.to(image.device), image, torch.full_like(image, GREY))
    return image[:, first_y:end_y, first_x:end_x]


BILINEAR = 2
"""Pillow's number of the only resampling that the published detectors use."""
TRUNCATE = 4
"""Standard deviations at which a Gaussian is truncated."""
SIZE_DIVISOR = 32
"""Default `size_divisor` of a Mask2Former."""


@dataclass(frozen=True)
class DetectorPixels:
    """Preprocessing. `size` is (height, width), or the (shortest, longest) edge if `keeps_ratio`;
    sides become multiples of `divisor`. `square`: pad to a black square, then smooth and resize
    (OWLv2). `mean` and `std` are 0 and 1 without normalisation.
    """

    size: tuple[int, int]
    keeps_ratio: bool
    divisor: int
    square: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, kind: str) -> DetectorPixels:
        """Of a detector's folder. Raises DirectAlignError, which names the file."""
        file, settings = read_settings(folder)
        default = SIZE_DIVISOR if kind == "mask2former" else 1
        try:
            normalised, size = settings.get("do_normalize", True), settings["size"]
            if settings.get("resample", BILINEAR) != BILINEAR:
                raise ValueError("resample")
            keeps_ratio = "shortest_edge" in size
            sides = ("shortest_edge", "longest_edge") if keeps_ratio else ("height", "width")
            return cls(
                size=(int(size[sides[0]]), int(size[sides[1]])),
                keeps_ratio=keeps_ratio,
                divisor=settings.get("size_divisor", default) or 1,
                square=kind == "owlv2",
                mean=tuple(settings["image_mean"]) if normalised else (0.0,) * 3,
                std=tuple(settings["image_std"]) if normalised else (1.0,) * 3,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DirectAlignError(
                f"{file}: cannot read {error} of the image settings; "
                "copy the file from the original checkpoint"
            ) from error

    def __call__(self, images: Images) -> Pixels:
        """Images (b, 3, h, w) in [0, 1] to the detector's input (b, 3, rows, columns)."""
        if self.square:
            longer = max(images.shape[-2:])
            images = F.pad(images, (0, longer - images.shape[-1], 0, longer - images.shape[-2]))
        size = self.resized(images.shape[-2], images.shape[-1])
        if self.square:
            images = _smooth_and_resize(images, size)
        else:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is resized to."""
        size = self.size
        if self.keeps_ratio:
            shortest, longest = self.size
            short, long = min(height, width), max(height, width)
            exact = shortest if long / short * shortest <= longest else longest * short / long
            small, large = round(exact), int(exact * long / short)
            size = (small, large) if height <= width else (large, small)
        rows, columns = (math.ceil(side / self.divisor) * self.divisor for side in size)
        return rows, columns


def _smooth_and_resize(images: Images, size: tuple[int, int]) -> Pixels:
    """Linear interpolation, after a Gaussian of deviation (factor − 1) / 2 where it shrinks."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        deviation = max(0.0, (images.shape[axis] / wanted - 1) / 2)
        radius = int(TRUNCATE * deviation + 0.5)
        if radius == 0:
            continue
        places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (places / deviation).square())
        shape = (-1, 1) if axis == -2 else (1, -1)
        kernel = (kernel / kernel.sum()).reshape(shape).expand(3, 1, *shape)
        padding = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        images = F.conv2d(F.pad(images, padding, mode="reflect"), kernel, groups=3)
    resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
    return resized.clamp(images.min(), images.max())


COCO_NAMES = {"computer mouse": "mouse", "computer keyboard": "keyboard", "tv remote": "remote"}
"""Class names in GenEval's prompts that COCO names otherwise."""
QUERY = "a photo of a {}"
"""OWLv2's text query of a class, as its authors write it."""


@dataclass(frozen=True)
class Detector:
    """A model in evaluation mode; `classes` by number, None if it detects any class named in a text
    query, which `tokenizer` encodes."""

    model: transformers.PreTrainedModel
    pixels: DetectorPixels
    classes: dict[int, str] | None = None
    tokenizer: transformers.PreTrainedTokenizerBase | None = None

    @torch.no_grad()
    def find(self, image: Image, things: Sequence[str], threshold: float) -> list[Found]:
        """Those of `things` in an image in [0, 1] with scores above `threshold`, in its pixels."""
        things = tuple(dict.fromkeys(things))
        output = self.model(pixel_values=self.pixels(image[None]), **self.queries(things))
        if self.model.config.model_type == "mask2former":
            return _masks(output, self.numbers(things), image, threshold)
        scores, (height, width) = output.logits[0].float().sigmoid(), image.shape[-2:]
        if self.classes is None:  # OWLv2: a box is of its best thing; the image became a square
            highest, best = scores.max(-1, keepdim=True)
            scores = torch.full_like(scores, -1).scatter(1, best, highest)
            height = width = max(height, width)
        return [
            Found(thing, float(scores[q, number]), _box(output.pred_boxes[0, q], height, width))
            for number, thing in self.numbers(things).items()
            for q in (scores[:, number] > threshold).nonzero()[:, 0].tolist()
        ]

    def numbers(self, things: Sequence[str]) -> dict[int, str]:
        """The class numbers of `things`, of text queries their places."""
        if self.classes is None:
            return dict(enumerate(things))
        wanted = {coco_name(thing): thing for thing in things}
        return {number: wanted[name] for number, name in self.classes.items() if name in wanted}

    def queries(self, things: Sequence[str]) -> dict[str, Tensor]:
        """The further arguments of the model: the text queries that it reads, if it does."""
        if self.tokenizer is None:
            return {}
        settings: Any = self.model.config
        tokens: Any = self.tokenizer(
            [QUERY.format(thing) for thing in things],
            padding="max_length",
            truncation=True,
            max_length=settings.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def coco_name(thing: str) -> str:
    """COCO's name of a class."""
    return COCO_NAMES.get(thing, thing)


def _masks(output: Any, numbers: dict[int, str], image: Image, threshold: float) -> list[Found]:
    """Mask2Former: score is the class probability times the mean probability of the mask."""
    scores = output.class_queries_logits[0].float().softmax(-1)[:, :-1]
    found = []
    for number, thing in numbers.items():
        for query in (scores[:, number] > threshold).nonzero()[:, 0].tolist():
            small = output.masks_queries_logits[:1, query : query + 1].float()
            logits = F.interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)
            logits = logits[0, 0]
            mask = logits > 0
            if not bool(mask.any()):
                continue
            score = float(scores[query, number] * logits.sigmoid()[mask].mean())
            if score > threshold:
                rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
                left, top = float(columns[0]), float(rows[0])
                box = left, top, float(columns[-1] + 1), float(rows[-1] + 1)
                found.append(Found(thing, score, box, mask.cpu()))
    return found


def _box(box: Tensor, height: int, width: int) -> Box:
    """Of centre and size (4,) relative to the image."""
    x, y, across, down = box.float().tolist()
    left, right = ((x + side * across / 2) * width for side in (-1, 1))
    top, bottom = ((y + side * down / 2) * height for side in (-1, 1))
    return left, top, right, bottom


@dataclass(frozen=True)
class Kind:
    """A detector architecture; the limits are defaults of the section's keys."""

    model: type[transformers.PreTrainedModel]
    limits: Limits


KINDS = {
    "mask2former": Kind(transformers.Mask2FormerForUniversalSegmentation, Limits(0.3, 0.9)),
    "rt_detr": Kind(transformers.RTDetrForObjectDetection, Limits(0.5, 0.5)),
    "rt_detr_v2": Kind(transformers.RTDetrV2ForObjectDetection, Limits(0.5, 0.5)),
    "d_fine": Kind(transformers.DFineForObjectDetection, Limits(0.5, 0.5)),
    "owlv2": Kind(transformers.Owlv2ForObjectDetection, Limits(0.1, 0.1)),
}
"""By `model_type`. Thresholds: GenEval's for its own architecture, else transformers'."""


KEY = "evaluate.adherence"
PATH_KEY = f"{KEY}.path"


def load_detector(settings: config.DetectorConfig, device: torch.device | str) -> Detector:
    """The detector of a section, float32. Raises DirectAlignError, which names the key."""
    patterns = (*weights.FOLDER_SETTINGS, *weights.FOLDER_WEIGHTS)
    folder = weights.locate(settings.path, PATH_KEY, patterns)
    kind, pixels, tokenizer = _read(folder, has_weights=True)
    model = weights.load_model(KINDS[kind].model, folder, PATH_KEY).eval().requires_grad_(False)
    torch.nn.Module.to(model, device)
    return Detector(model, pixels, classes_of(folder), tokenizer)


def check_detector(settings: config.DetectorConfig, online: bool = False) -> None:
    """Refuse what `load_detector` would refuse, without weights; on the hub when `online`."""
    folder = weights.locate_offline(settings.path, PATH_KEY, weights.FOLDER_SETTINGS, online)
    if folder is not None:
        _read(folder, has_weights=not hub.is_hub_id(settings.path))


def _read(
    folder: Path, has_weights: bool
) -> tuple[str, DetectorPixels, transformers.PreTrainedTokenizerBase | None]:
    kind = kind_of(folder)
    if has_weights:
        weights.check_folder(folder, PATH_KEY, KINDS[kind].model)
    tokenizer = weights.read_tokenizer(folder, PATH_KEY) if kind == "owlv2" else None
    return kind, DetectorPixels.read(folder, kind), tokenizer


def kind_of(folder: Path) -> str:
    """`model_type` of a detector's folder. Raises DirectAlignError for another model."""
    kind = weights.read_model_type(folder, PATH_KEY, "transformers detector")
    if kind not in KINDS:
        raise DirectAlignError(
            f"{PATH_KEY}: {folder}: holds a model of type {kind}, which is no supported detector; "
            f"known are {', '.join(KINDS)}"
        )
    return kind


def classes_of(folder: Path) -> dict[int, str] | None:
    """A detector's class names by number; None if it detects any named class."""
    if kind_of(folder) == "owlv2":
        return None
    names = read_json(folder / "config.json").get("id2label", {})
    return {int(number): str(name).lower() for number, name in names.items()}


@dataclass(frozen=True)
class DetectorJudge:
    """Judges by the boxes of a frozen detector; `colors` is None if no prompt asks for any."""

    detector: Detector
    limits: Limits
    colors: ColorReader | None

    @classmethod
    def load(cls, settings: config.DetectorConfig, device: torch.device | str) -> DetectorJudge:
        """Of a section `adherence: {name: detector, ...}`."""
        detector, colors = load_detector(settings, device), None
        if settings.colors is not None:
            colors = ColorReader(ClipReward.from_config(settings.colors, device, f"{KEY}.colors"))
        given = {"threshold": settings.threshold, "counting": settings.counting_threshold}
        given = {name: value for name, value in given.items() if value is not None}
        usual = KINDS[detector.model.config.model_type].limits
        return cls(detector, replace(usual, max_overlap=settings.max_overlap, **given), colors)

    def judge(self, image: Image, row: PromptRow) -> Judged:
        """A verdict on each fact of the row, which must have some; one detection per image."""
        things = [entry["class"] for entry in (*row.facts["include"], *row.facts["exclude"])]
        found = self.detector.find(image, things, self.limits.of(row.facts["tag"]))

        def read_colors(each: Sequence[Found], thing: str) -> list[str]:
            assert self.colors is not None, "refused by check_facts"
            return self.colors.read(image, each, thing)

        return judge(row.facts, found, self.limits, read_colors)
