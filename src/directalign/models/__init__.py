"""The border with diffusers: each architecture behind the one face of `interfaces.Family`, siblings independent."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import torch
from torch import nn

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

MODELS: dict[str, Any] = {
    "flux": Flux,
    "flux2_klein": Flux2Klein,
    "sd3": StableDiffusion3,
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "qwen_image": QwenImage,
    "z_image": ZImage,
}
"""Name in a recipe -> the class, whose `pipeline`, `part` and `text_parts` say what a folder must hold."""


def load_model(
    settings: config.ModelConfig,
    device: torch.device | str,
    seed: int = 0,
    denoiser_device: torch.device | None = None,
) -> Model:
    """Load a frozen pipeline whose denoiser is ready to train as `settings.tune` says; `seed` draws the adapters.

    `denoiser_device` keeps the denoiser on another device, for example to shard it from there.
    Raises DirectAlignError for a folder, file or class that is missing, damaged or of another architecture.
    """
    with denoiser_on(denoiser_device):
        model = MODELS[settings.architecture](
            open_source(settings), settings, torch.device(device), seed
        )
    accelerate(model.denoiser, settings)
    return model


def trainable(model: Model) -> dict[str, nn.Parameter]:
    """The trained parameters by name, float32: adapters, or all weights of the denoiser."""
    return lora.trained(model.denoiser)


def load_trained(model: Model, folder: FilePath) -> None:
    """Load what `model.save(folder)` wrote into a model of the same architecture and `tune`."""
    lora.load(model.denoiser, folder, model.part)
