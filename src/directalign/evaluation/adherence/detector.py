"""Detectors of transformers that load without torchvision and timm: what they find in an image, under the names that prompts use.

    mask2former                   instances with masks, classes of COCO   facebook/mask2former-swin-small-coco-instance, as GenEval's own
    rt_detr, rt_detr_v2, d_fine   boxes, classes of COCO                  PekingU/rtdetr_r50vd, ustc-community/dfine-medium-coco
    owlv2                         boxes of whatever is named to it        google/owlv2-base-patch16-ensemble

Left out: DETR, whose published weights want timm; Grounding DINO, which scores phrases and not things. Frozen, float32, no gradient.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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

from ... import config
from ...io import hub
from ...rewards import clip, weights
from ...rewards.clip import ClipReward
from ...rewards.common import read_settings
from ...rewards.weights import locate
from ...types import DirectAlignError, Images
from ..eval_prompts import PromptRow
from .geneval import Box, Found, Judged, Limits, judge

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = (
    "a photo of a {color} {thing}",
    "a photo of a {color}-colored {thing}",
    "a photo of a {color} object",
)
GREY = 0.6
"""What hides the surroundings of a thing."""

Image = Float[Tensor, "3 H W"]


class ColorReader:
    """Names colours by a frozen CLIP; phrases are encoded once per kind of thing and kept."""

    def __init__(self, clip: ClipReward) -> None:
        self.clip = clip
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def read(self, image: Image, things: Sequence[Found], thing: str) -> list[str]:
        """The colour, of `COLORS`, of each of `things`, which are all a `thing`, in an image in [0, 1]."""
        features = torch.cat([self.clip.encode(cut_out(image, each)[None]) for each in things])
        return [
            COLORS[place] for place in (features @ self._directions(thing).T).argmax(1).tolist()
        ]

    def _directions(self, thing: str) -> Float[Tensor, "c d"]:
        """One unit vector per colour."""
        if thing not in self._kept:
            phrases = [
                template.format(color=color, thing=thing)
                for color in COLORS
                for template in TEMPLATES
            ]
            self._kept[thing] = F.normalize(
                self.clip.encode_text(phrases).reshape(len(COLORS), len(TEMPLATES), -1).mean(1),
                dim=-1,
            )
        return self._kept[thing]


def cut_out(image: Image, found: Found) -> Float[Tensor, "3 rows columns"]:
    """The thing's box of an image, cut at the image's edges and at least a pixel large, with grey where its mask is not."""
    height, width = image.shape[-2:]
    left, top = (
        min(max(math.floor(at), 0), size - 1)
        for at, size in zip(found.box[:2], (width, height), strict=True)
    )
    right, bottom = (
        max(min(math.ceil(at), size), low + 1)
        for at, size, low in zip(found.box[2:], (width, height), (left, top), strict=True)
    )
    shown = (
        image
        if found.mask is None
        else torch.where(found.mask.to(image.device), image, torch.full_like(image, GREY))
    )
    return shown[:, top:bottom, left:right]


BILINEAR = 2
"""Pillow's number for the only way of resizing that the published detectors use."""
CUT_OFF = 4
"""A Gaussian is cut off at so many standard deviations."""

Pixels = Float[Tensor, "b 3 rows columns"]


@dataclass(frozen=True)
class DetectorPixels:
    """`size` is (height, width), or the (shortest, longest) edge where `keeps_ratio`; sides become multiples of `divisor`.

    `square`: padded to a square with black, then smoothed and resized. `mean` and `std` are 0 and 1 where nothing is normalised.
    """

    size: tuple[int, int]
    keeps_ratio: bool
    divisor: int
    square: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, divisor: int = 1, square: bool = False) -> DetectorPixels:
        """From a detector's folder; `divisor` is the usual one of its kind. Raises DirectAlignError, which names the file."""
        file, settings = read_settings(folder)
        try:
            normalised, size = settings.get("do_normalize", True), settings["size"]
            if settings.get("resample", BILINEAR) != BILINEAR:
                raise ValueError("resample")
            return cls(
                size=_pair(size),
                keeps_ratio="shortest_edge" in size,
                divisor=settings.get("size_divisor", divisor) or 1,
                square=square,
                mean=tuple(settings["image_mean"]) if normalised else (0.0,) * 3,
                std=tuple(settings["image_std"]) if normalised else (1.0,) * 3,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DirectAlignError(
                f"{file}: cannot read {error} of the image settings; copy the file from the original checkpoint"
            ) from error

    def __call__(self, images: Images) -> Pixels:
        """Images (b, 3, h, w) in [0, 1] to what the detector takes, (b, 3, rows, columns)."""
        if self.square:
            longer = max(images.shape[-2:])
            images = F.pad(images, (0, longer - images.shape[-1], 0, longer - images.shape[-2]))
        size = self.resized(images.shape[-2], images.shape[-1])
        images = (
            _smoothed_and_resized(images, size)
            if self.square
            else F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        )
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (images - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is brought to."""
        size = _in_ratio(height, width, *self.size) if self.keeps_ratio else self.size
        return math.ceil(size[0] / self.divisor) * self.divisor, math.ceil(
            size[1] / self.divisor
        ) * self.divisor


def _pair(size: Any) -> tuple[int, int]:
    names = ("shortest_edge", "longest_edge") if "shortest_edge" in size else ("height", "width")
    return int(size[names[0]]), int(size[names[1]])


def _in_ratio(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """The shorter side becomes `shortest`, or less where the longer one would pass `longest`."""
    short, long = min(height, width), max(height, width)
    exact = shortest if long / short * shortest <= longest else longest * short / long
    small = round(exact)
    large = int(exact * long / short)
    return (small, large) if height <= width else (large, small)


def _smoothed_and_resized(images: Images, size: tuple[int, int]) -> Pixels:
    """Linear interpolation after a Gaussian of standard deviation (factor − 1) / 2 where an axis shrinks."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        images = _smoothed(images, axis, max(0.0, (images.shape[axis] / wanted - 1) / 2))
    return F.interpolate(images, size, mode="bilinear", align_corners=False).clamp(
        images.min(), images.max()
    )


def _smoothed(images: Images, axis: int, deviation: float) -> Images:
    """One axis convolved with a Gaussian, mirrored at its ends."""
    radius = int(CUT_OFF * deviation + 0.5)
    if radius == 0:
        return images
    places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-0.5 * (places / deviation).square())
    kernel = (
        (weights / weights.sum())
        .reshape((-1, 1) if axis == -2 else (1, -1))
        .expand(3, 1, *((-1, 1) if axis == -2 else (1, -1)))
    )
    padded = F.pad(
        images, (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0), mode="reflect"
    )
    return F.conv2d(padded, kernel, groups=3)


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


def _boxes_of_classes(
    detector: Detector, image: Image, things: Sequence[str], threshold: float
) -> list[Found]:
    """Each query of an RT-DETR or D-FINE may be any class, each with a probability of its own."""
    told = detector.model(pixel_values=detector.pixels(image[None]))
    scores, classes = told.logits[0].float().sigmoid(), _numbers(detector, things)
    return [
        Found(
            thing,
            float(scores[query, number]),
            _box(told.pred_boxes[0, query], image.shape[-2], image.shape[-1]),
        )
        for number, thing in classes.items()
        for query in (scores[:, number] > threshold).nonzero()[:, 0].tolist()
    ]


def _named_boxes(
    detector: Detector, image: Image, things: Sequence[str], threshold: float
) -> list[Found]:
    """Each box of an OWLv2 is the thing that fits it best, of those named; its image is padded to a square."""
    assert detector.tokenizer is not None
    text: Any = detector.model.config
    options: dict[str, Any] = {
        "padding": "max_length",
        "truncation": True,
        "max_length": text.text_config.max_position_embeddings,
        "return_tensors": "pt",
    }
    asked = detector.tokenizer([QUERY.format(thing) for thing in things], **options).to(
        detector.model.device
    )
    pixels = detector.pixels(image[None])
    told = detector.model(
        pixel_values=pixels, input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]
    )
    scores, best = told.logits[0].float().sigmoid().max(-1)
    side = max(image.shape[-2:])
    return [
        Found(
            things[int(best[query])],
            float(scores[query]),
            _box(told.pred_boxes[0, query], side, side),
        )
        for query in (scores > threshold).nonzero()[:, 0].tolist()
    ]


def _masks_of_classes(
    detector: Detector, image: Image, things: Sequence[str], threshold: float
) -> list[Found]:
    """A query of a Mask2Former counts by its class's probability times the mean probability of its mask."""
    told = detector.model(pixel_values=detector.pixels(image[None]))
    scores = told.class_queries_logits[0].float().softmax(-1)[:, :-1]
    found = []
    for number, thing in _numbers(detector, things).items():
        for query in (scores[:, number] > threshold).nonzero()[:, 0].tolist():
            logits = F.interpolate(
                told.masks_queries_logits[:1, query : query + 1].float(),
                image.shape[-2:],
                mode="bilinear",
                align_corners=False,
            )[0, 0]
            mask = logits > 0
            sure = (
                float(scores[query, number] * logits.sigmoid()[mask].mean())
                if bool(mask.any())
                else 0.0
            )
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
    return (
        (x - across / 2) * width,
        (y - down / 2) * height,
        (x + across / 2) * width,
        (y + down / 2) * height,
    )


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


GENEVAL, LIBRARY, OPEN_WORDS = (0.3, 0.9), (0.5, 0.5), (0.1, 0.1)
USUAL = {
    "mask2former": GENEVAL,
    "rt_detr": LIBRARY,
    "rt_detr_v2": LIBRARY,
    "d_fine": LIBRARY,
    "owlv2": OPEN_WORDS,
}
"""`threshold` and `counting_threshold`: GenEval's, for the kind of detector it was made with; for the others those of transformers' own processors."""
DIVISOR = 32
"""Sides of a Mask2Former's images are multiples of this, where its settings say nothing else."""


def load_detector(
    settings: config.DetectorConfig, device: torch.device | str, key: str
) -> Detector:
    """The detector of a section, float32; what is wrong with its files is one error that names the key below `key`."""
    folder = locate(
        settings.path, f"{key}.path", (*weights.FOLDER_SETTINGS, *weights.FOLDER_WEIGHTS)
    )
    kind = kind_of(folder, f"{key}.path")
    weights.check_folder(folder, f"{key}.path", MODELS[kind])
    pixels, tokenizer = _pixels(folder, kind), _tokenizer(folder, kind, f"{key}.path")
    model = weights.load_model(MODELS[kind], folder, f"{key}.path").eval().requires_grad_(False)
    torch.nn.Module.to(model, device)
    return Detector(model, pixels, classes_of(folder, kind), tokenizer)


def check_detector(settings: config.DetectorConfig, key: str, online: bool = False) -> None:
    """What `load_detector` would refuse, without reading weights; of one on the hub only when `online`."""
    here = not hub.is_hub_id(settings.path)
    if not here and not online:
        return
    folder = (
        locate(settings.path, f"{key}.path", ())
        if here
        else hub.download(settings.path, weights.FOLDER_SETTINGS, f"{key}.path")
    )
    kind = kind_of(folder, f"{key}.path")
    if here:
        weights.check_folder(folder, f"{key}.path", MODELS[kind])
    _pixels(folder, kind)
    _tokenizer(folder, kind, f"{key}.path")


def known_classes(settings: config.DetectorConfig, key: str) -> dict[int, str] | None:
    """The names of its classes by number, None where it takes any words; of a detector on the hub config.json alone is fetched."""
    folder = locate(settings.path, f"{key}.path", ("config.json",))
    return classes_of(folder, kind_of(folder, f"{key}.path"))


def limits_of(settings: config.DetectorConfig, kind: str) -> Limits:
    """When a box counts: as the section says, else as usual for the kind."""
    threshold, counting = USUAL[kind]
    given = settings.threshold, settings.counting_threshold
    return Limits(
        threshold if given[0] is None else given[0],
        counting if given[1] is None else given[1],
        settings.max_overlap,
    )


def kind_of(folder: Path, key: str) -> str:
    """`model_type` of a detector's folder. Raises DirectAlignError for no folder, no config.json, or another kind of model."""
    told = model_type(folder, key)
    if told not in MODELS:
        raise DirectAlignError(
            f"{key}: {folder}: holds a model of type {told}, which is no detector that is known here; known are {', '.join(MODELS)}"
        )
    return told


def model_type(folder: Path, key: str) -> str | None:
    """What a folder's config.json says that it holds. Raises DirectAlignError for none, or an unreadable one."""
    return _config(folder, key).get("model_type")


def classes_of(folder: Path, kind: str) -> dict[int, str] | None:
    """The names of a detector's classes by number; None of one that looks for whatever is named."""
    if kind == "owlv2":
        return None
    return {
        int(number): str(name).lower()
        for number, name in _config(folder, "").get("id2label", {}).items()
    }


def _config(folder: Path, key: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise DirectAlignError(
            f"{key}: {folder}: config.json is missing; it must be the complete transformers folder of a detector"
        )
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DirectAlignError(
            f"{key}: {file}: not readable as JSON ({error}); copy it again from the original checkpoint"
        ) from error


def _pixels(folder: Path, kind: str) -> DetectorPixels:
    return DetectorPixels.read(
        folder, divisor=DIVISOR if kind == "mask2former" else 1, square=kind == "owlv2"
    )


def _tokenizer(folder: Path, kind: str, key: str) -> PreTrainedTokenizerBase | None:
    return weights.read_tokenizer(folder, key) if kind == "owlv2" else None


class Detecting:
    """Judges by what a frozen detector finds; `colors` is None where no prompt asks for any."""

    def __init__(self, detector: Detector, limits: Limits, colors: ColorReader | None) -> None:
        self.detector, self.limits, self.colors = detector, limits, colors

    def judge(self, image: Image, row: PromptRow) -> Judged:
        """A verdict on each fact of the row, which must have some; the image in [0, 1] is looked at once."""
        things = [entry["class"] for entry in (*row.facts["include"], *row.facts["exclude"])]
        found = self.detector.find(image, things, self.limits.of(row.facts["tag"]))

        def read_colors(each: Sequence[Found], thing: str) -> list[str]:
            assert self.colors is not None, "refused by checking.check_facts"
            return self.colors.read(image, each, thing)

        return judge(row.facts, found, self.limits, read_colors)


def load_detecting(
    settings: config.DetectorConfig, device: torch.device | str, key: str
) -> Detecting:
    """Of a section `adherence: {name: detector, ...}`."""
    detector = load_detector(settings, device, key)
    colors = (
        None
        if settings.colors is None
        else ColorReader(clip.ClipReward.from_config(settings.colors, device, f"{key}.colors"))
    )
    return Detecting(detector, limits_of(settings, detector.model.config.model_type), colors)
