"""A detector's folder: which kind it is, what classes it knows, and whatever is wrong with it before its weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ... import config
from ...io import hub
from ...rewards import weights
from ...rewards.weights import locate
from ...types import DirectAlignError
from .detector import MODELS, Detector
from .pixels import DetectorPixels
from .rules import Limits

GENEVAL, LIBRARY, OPEN_WORDS = (0.3, 0.9), (0.5, 0.5), (0.1, 0.1)
USUAL = {"mask2former": GENEVAL, "rt_detr": LIBRARY, "rt_detr_v2": LIBRARY, "d_fine": LIBRARY, "owlv2": OPEN_WORDS}
"""`threshold` and `counting_threshold`: GenEval's, for the kind of detector it was made with; for the others those of transformers' own processors."""
DIVISOR = 32
"""Sides of a Mask2Former's images are multiples of this, where its settings say nothing else."""


def load_detector(settings: config.Detector, device: torch.device | str, key: str) -> Detector:
    """The detector of a section, float32; what is wrong with its files is one error that names the key below `key`."""
    folder = locate(settings.path, f"{key}.path", (*weights.FOLDER_SETTINGS, *weights.FOLDER_WEIGHTS))
    kind = kind_of(folder, f"{key}.path")
    weights.check_folder(folder, f"{key}.path", MODELS[kind])
    pixels, tokenizer = _pixels(folder, kind), _tokenizer(folder, kind, f"{key}.path")
    model = weights.load_model(MODELS[kind], folder, f"{key}.path").eval().requires_grad_(False)
    torch.nn.Module.to(model, device)
    return Detector(model, pixels, classes_of(folder, kind), tokenizer)


def check_detector(settings: config.Detector, key: str, online: bool = False) -> None:
    """What `load_detector` would refuse, without reading weights; of one on the hub only when `online`."""
    here = not hub.is_hub_id(settings.path)
    if not here and not online:
        return
    folder = locate(settings.path, f"{key}.path", ()) if here else hub.download(settings.path, weights.FOLDER_SETTINGS, f"{key}.path")
    kind = kind_of(folder, f"{key}.path")
    if here:
        weights.check_folder(folder, f"{key}.path", MODELS[kind])
    _pixels(folder, kind)
    _tokenizer(folder, kind, f"{key}.path")


def known_classes(settings: config.Detector, key: str) -> dict[int, str] | None:
    """The names of its classes by number, None where it takes any words; of a detector on the hub config.json alone is fetched."""
    folder = locate(settings.path, f"{key}.path", ("config.json",))
    return classes_of(folder, kind_of(folder, f"{key}.path"))


def limits_of(settings: config.Detector, kind: str) -> Limits:
    """When a box counts: as the section says, else as usual for the kind."""
    threshold, counting = USUAL[kind]
    given = settings.threshold, settings.counting_threshold
    return Limits(threshold if given[0] is None else given[0], counting if given[1] is None else given[1], settings.max_overlap)


def kind_of(folder: Path, key: str) -> str:
    """`model_type` of a detector's folder. Raises DirectAlignError for no folder, no config.json, or another kind of model."""
    told = model_type(folder, key)
    if told not in MODELS:
        raise DirectAlignError(f"{key}: {folder}: holds a model of type {told}, which is no detector that is known here; known are {', '.join(MODELS)}")
    return told


def model_type(folder: Path, key: str) -> str | None:
    """What a folder's config.json says that it holds. Raises DirectAlignError for none, or an unreadable one."""
    return _config(folder, key).get("model_type")


def classes_of(folder: Path, kind: str) -> dict[int, str] | None:
    """The names of a detector's classes by number; None of one that looks for whatever is named."""
    if kind == "owlv2":
        return None
    return {int(number): str(name).lower() for number, name in _config(folder, "").get("id2label", {}).items()}


def _config(folder: Path, key: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise DirectAlignError(f"{key}: {folder}: config.json is missing; it must be the complete transformers folder of a detector")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DirectAlignError(f"{key}: {file}: not readable as JSON ({error}); copy it again from the original checkpoint") from error


def _pixels(folder: Path, kind: str) -> DetectorPixels:
    return DetectorPixels.read(folder, divisor=DIVISOR if kind == "mask2former" else 1, square=kind == "owlv2")


def _tokenizer(folder: Path, kind: str, key: str) -> PreTrainedTokenizerBase | None:
    return weights.read_tokenizer(folder, key) if kind == "owlv2" else None
