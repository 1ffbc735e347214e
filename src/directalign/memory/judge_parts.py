"""One reward's network and image settings, kind by kind: from a folder's config or a file's shapes, else from the published configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import nn

from .. import config
from ..io import hub
from ..models.weight_files import read_json
from ..rewards import hpsv3, image_reward, open_clip
from ..rewards.aesthetic import V2_5, HeadLayout, recognise
from ..rewards.common import Preprocessing
from ..rewards.hpsv3 import PIXELS, USUAL
from ..rewards.image_reward import CLIP_MEAN, CLIP_STD
from ..rewards.mps import MADE_FROM, sizes_of
from ..rewards.qwen_vl import VlmPixels, model_class_of
from ..rewards.weights import is_weight_file, locate, on_the_hub, read_shapes
from ..types import DirectAlignError
from .architecture import known, local_folder
from .weightless import Part

USUAL_MODEL = {
    "clip": "clip_vit_h",
    "siglip": "siglip_so400m",
    "image_reward": "image_reward",
    "vlm": "qwen2_5_vl_7b",
    "laion": "clip_vit_l",
}
"""For each kind of network the file of the model that an unknown hub id is taken for."""
CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
INNER = (1024, 128, 64, 16)
"""Widths inside the heads that LAION's and v2.5's authors published."""
CROSS = {"dim": 1024, "layers": 4, "dim_head": 64, "heads": 16, "ff_mult": 4}
"""The cross model of the published MPS."""
IMAGES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Found:
    """A network, how images reach it, and what is doubtful about it."""

    part: Part
    pixels: Preprocessing | VlmPixels
    doubts: tuple[str, ...] = ()


def found(reward: config.SingleRewardConfig, key: str) -> Found:
    """Of a reward with a network, whose section stands at `key`. Raises DirectAlignError for files that are missing, torn or of another kind."""
    return KINDS[reward.name](reward, key)


def _clip(reward: config.ClipConfig, key: str) -> Found:
    if not is_weight_file(reward.path):
        return _of_folder(reward, key, "clip")
    file = local_file(reward.path, f"{key}.path")
    if file is None:
        part, doubts = _published(reward.path, f"{key}.path", "clip")
    else:
        part, doubts = (
            Part.of(CLASSES["clip"], open_clip.describe(file, key, reward.activation).to_dict()),
            (),
        )
    return Found(part, _images(_reader(reward, file and file.parent), part.config), doubts)


def _siglip(reward: config.SiglipConfig, key: str) -> Found:
    return _of_folder(reward, key, "siglip")


def _of_folder(reward: config.ClipConfig | config.SiglipConfig, key: str, kind: str) -> Found:
    part, folder, doubts = _backbone(reward.path, f"{key}.path", kind)
    return Found(part, _images(_reader(reward, folder), part.config), doubts)


def _image_reward(reward: config.ImageRewardConfig, key: str) -> Found:
    file = local_file(reward.path, f"{key}.path")
    if file is None:
        part, doubts = _published(reward.path, f"{key}.path", "image_reward")
    else:
        of = image_reward.describe_blip(file, key)
        widths = [layer.out_features for layer in of.head.modules() if isinstance(layer, nn.Linear)]
        part, doubts = (
            Part.of(
                "Blip",
                {"vision": of.vision.to_dict(), "text": of.text.to_dict(), "inner": widths[:-1]},
            ),
            (),
        )
    side = part.config["vision"]["image_size"]
    return Found(
        part, Preprocessing(side, (side, side), CLIP_MEAN, CLIP_STD, rounded_centre=True), doubts
    )


def _aesthetic(reward: config.AestheticConfig, key: str) -> Found:
    file = local_file(reward.path, f"{key}.path")
    shapes = None if file is None else read_shapes(file, f"{key}.path")
    layout = None if file is None or shapes is None else recognise(shapes, file, f"{key}.path")
    kinds = (
        ("laion", "clip", "siglip")
        if layout is None
        else ("siglip",)
        if layout is V2_5
        else ("laion", "clip")
    )
    part, folder, doubts = _backbone(reward.backbone, f"{key}.backbone", *kinds)
    inner = list(INNER) if layout is None or shapes is None else _inner(layout, shapes)
    name = "SiglipPredictor" if part.class_name == CLASSES["siglip"] else "ClipPredictor"
    return Found(
        Part.of(name, {"backbone": part.config, "inner": inner}),
        _images(_reader(reward, folder), part.config),
        doubts,
    )


def _inner(layout: HeadLayout, shapes: Mapping[str, Any]) -> list[int]:
    return [shapes[f"{layout.prefix}.{number}.weight"][0] for number in layout.numbers[:-1]]


def _mps(reward: config.MpsConfig, key: str) -> Found:
    """The file has the numbers, the processor's config says what CLIP they are."""
    file = local_file(reward.path, f"{key}.path")
    beside = None if file is None else str(file.parent)
    part, folder, doubts = _backbone(
        reward.processor or beside or MADE_FROM, f"{key}.processor", "clip"
    )
    cross = CROSS if file is None else sizes_of(read_shapes(file, f"{key}.path"), "cross_model.")
    return Found(
        Part.of("Mps", {"clip": part.config, "cross": cross}), _images(folder, part.config), doubts
    )


def _vlm(reward: config.QwenVLConfig, key: str) -> Found:
    folder = local_folder(reward.path, None, "config.json")
    if folder is None:
        part, doubts = _published(reward.path, f"{key}.path", "vlm")
    else:
        part, doubts = (
            Part.of(
                model_class_of(folder, f"{key}.path").__name__, read_json(folder / "config.json")
            ),
            (),
        )
    return Found(
        part,
        _cells(_reader(reward, folder), part, reward.path, key).bounded(reward.max_pixels),
        doubts,
    )


def _hpsv3(reward: config.Hpsv3Config, key: str) -> Found:
    """The processor's Qwen2-VL; a file that is here says how many tokens it embeds."""
    file = local_file(reward.path, f"{key}.path")
    name = reward.processor or (USUAL if file is None else str(file.parent))
    folder = local_folder(name, None, "config.json")
    if folder is None:
        part, doubts = _published(name, f"{key}.processor", "vlm")
        told = part.config
    elif file is None:
        told, doubts = read_json(folder / "config.json"), ()
    else:
        shapes = {
            hpsv3.inner(name): shape for name, shape in read_shapes(file, f"{key}.path").items()
        }
        told, doubts = hpsv3.described(shapes, folder, file, key).to_dict(), ()
    part = Part.of("Hpsv3", told)
    return Found(
        part, replace(_cells(folder, part, name, key), min_pixels=PIXELS, max_pixels=PIXELS), doubts
    )


KINDS: dict[str, Callable[[Any, str], Found]] = {
    "clip": _clip,
    "siglip": _siglip,
    "image_reward": _image_reward,
    "aesthetic": _aesthetic,
    "mps": _mps,
    "vlm": _vlm,
    "hpsv3": _hpsv3,
}


def local_file(path: str, key: str) -> Path | None:
    """A file on this machine: as given, or in the hub's cache; None for one that is on the hub alone."""
    if not hub.is_hub_file(path):
        return locate(path, key, ())
    cached = try_to_load_from_cache(*on_the_hub(path))
    return Path(cached) if isinstance(cached, str) else None


def _backbone(path: str, key: str, *kinds: str) -> tuple[Part, Path | None, tuple[str, ...]]:
    """A CLIP or SigLIP by its folder or hub id, with the folder if it is here."""
    folder = local_folder(path, None, "config.json")
    if folder is None:
        part, doubts = _published(path, key, *kinds)
        return part, None, doubts
    told = read_json(folder / "config.json")
    kind = told.get("model_type")
    if kind not in kinds:
        wanted = " or ".join(CLASSES[each] for each in kinds if each in CLASSES)
        raise DirectAlignError(
            f"{key}: {folder} holds a {kind} model, and this reward needs a transformers {wanted}"
        )
    return Part.of(CLASSES[kind], told), folder, ()


def _published(path: str, key: str, *kinds: str) -> tuple[Part, tuple[str, ...]]:
    """A published network by its hub id, else the usual one of the first kind under a doubt."""
    told = next((told for told in known().values() if path in told["hub_ids"]), None)
    if told is not None and told["architecture"] not in kinds:
        raise DirectAlignError(
            f"{key}: {path} is a model of {told['family']}, and this reward needs one of {' or '.join(set(kinds) - {'laion'})}"
        )
    taken = told or known()[USUAL_MODEL[kinds[0]]]
    doubt = f"{key}: {path} is not downloaded yet and not known here: figures are those of {taken['hub_ids'][0]}"
    settings = taken["parts"]["reward"]
    return Part.of(settings["_class_name"], settings), () if told else (doubt,)


def _reader(
    reward: config.ClipConfig | config.SiglipConfig | config.AestheticConfig | config.QwenVLConfig,
    beside: Path | None,
) -> Path | None:
    """The folder of the image settings, where it is here."""
    return beside if reward.processor is None else local_folder(reward.processor, None, IMAGES[0])


def _images(folder: Path | None, told: Mapping[str, Any]) -> Preprocessing:
    """The folder's own settings, else CLIP's at the size of the network."""
    if folder is not None and any((folder / name).exists() for name in IMAGES):
        return Preprocessing.read(folder)
    side = told["vision_config"]["image_size"]
    return Preprocessing(side, (side, side), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def _cells(folder: Path | None, part: Part, path: str, key: str) -> VlmPixels:
    """The folder's own settings, else the network's patches within the published bounds."""
    if folder is not None and any((folder / name).exists() for name in IMAGES):
        return VlmPixels.read(folder, f"{key}.path")
    told = next(
        (told for told in known().values() if path in told["hub_ids"]), known()[USUAL_MODEL["vlm"]]
    )
    vision = part.config["vision_config"]
    return VlmPixels(
        vision["patch_size"],
        vision.get("spatial_merge_size", 2),
        vision.get("temporal_patch_size", 2),
        **told["images"],
    )
