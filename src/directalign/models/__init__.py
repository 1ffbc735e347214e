"""The border with diffusers: each architecture behind the one face of `interfaces.Family`, siblings independent."""

from __future__ import annotations

from .. import config
from ..interfaces import Model
from . import lora
from .attention import accelerate
from .checkpoint_source import open_source
from .device import denoiser_on
from .flux import Flux
from .flux2_klein import Flux2Klein
from .qwen_image import QwenImage
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL
from .z_image import ZImage
from pathlib import Path as FilePath
from typing import Any
import torch
from torch import nn


FAMILIES: dict[str, Any] = {
    "flux": Flux,
    "flux2_klein": Flux2Klein,
    "sd3": StableDiffusion3,
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "qwen_image": QwenImage,
    "z_image": ZImage,
}
"""Name in a recipe -> the class, whose `pipeline`, `part` and `text_parts` say what a folder must hold."""


def load_model(model: config.ModelConfig, device: torch.device | str, seed: int = 0, denoiser_device: torch.device | None = None) -> Model:
    """A frozen pipeline whose denoiser is ready to train as `model.tune` says; `seed` draws the adapters' first factor.

    `denoiser_device` keeps the denoiser elsewhere than the rest: one that is to be split over several devices fits on none.
    Errors: DirectAlignError for a folder, file or class that is missing, torn or of another architecture.
    """
    with denoiser_on(denoiser_device):
        family = FAMILIES[model.family](open_source(model), model, torch.device(device), seed)
    accelerate(family.denoiser, model)
    return family


def trainable(family: Model) -> dict[str, nn.Parameter]:
    """What the optimiser steps: adapters or all weights of the denoiser, by name, float32."""
    return lora.trained(family.denoiser)


def load_trained(family: Model, folder: FilePath) -> None:
    """Reads what `family.save(folder)` wrote into a family of the same architecture and `tune`; a misfit is an error."""
    lora.load(family.denoiser, folder, family.part)
