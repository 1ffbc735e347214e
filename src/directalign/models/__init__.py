"""The border with diffusers: one file and one class per architecture, each an `interfaces.Model`.

A new architecture is one file and one line in `MODELS`; what other parts must know of it are
attributes of its class (see `common.DiffusersModel`). A class of the user's own needs no line:
`model.architecture: my_model.py:MyModel`.
"""

import importlib
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import diffusers
import torch
from torch import nn

from .. import config
from ..errors import first_line
from ..interfaces import Model
from ..io.user_code import load_object
from ..types import DirectAlignError
from . import lora
from .attention import accelerate, check_inputs
from .block_swap import swap_blocks
from .checkpoint_source import Source, open_source

MODELS: dict[str, str] = {
    "flux": "flux:Flux",
    "flux_kontext": "flux:FluxKontext",
    "flux2": "flux2:Flux2Dev",
    "flux2_klein": "flux2:Flux2Klein",
    "sd3": "sd3:StableDiffusion3",
    "sd": "sd:StableDiffusion",
    "sdxl": "sd:StableDiffusionXL",
    "kolors": "sd:Kolors",
    "qwen_image": "qwen_image:QwenImage",
    "qwen_image_edit": "qwen_image:QwenImageEdit",
    "qwen_image_edit_plus": "qwen_image:QwenImageEditPlus",
    "z_image": "z_image:ZImage",
    "chroma": "chroma:Chroma",
    "ernie_image": "ernie_image:ErnieImage",
    "krea2": "krea2:Krea2",
    "lumina2": "lumina2:Lumina2",
    "qwen_image_21": "qwen_image_21:QwenImage21",
    "sana": "sana:Sana",
    "aura_flow": "aura_flow:AuraFlow",
    "hidream": "hidream:HiDream",
}
"""`model.architecture` -> "module:Class"; a module is imported when its class is first used."""


def model_class(name: str) -> Any:
    """The class behind `model.architecture`: a name in `MODELS`, or "file.py:Class".

    Raises DirectAlignError for an unknown name, a file without that class, or an architecture that
    the installed diffusers does not have.
    """
    module, _, class_name = MODELS.get(name, name).rpartition(":")
    if name in MODELS:
        try:
            return getattr(importlib.import_module(f".{module}", __name__), class_name)
        except ImportError as error:
            raise DirectAlignError(
                f"model.architecture: {name} is not in the installed diffusers "
                f"{diffusers.__version__} ({first_line(error)}): pip install --upgrade diffusers"
            ) from error
    if not module.endswith(".py"):
        near = get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else "or a class of your own, my_model.py:MyModel"
        raise DirectAlignError(
            f"model.architecture: {name} is not known: choose one of {', '.join(MODELS)}; {hint}"
        )
    return load_object(name, "model.architecture", "class")


def architectures() -> dict[str, str]:
    """The architecture of each pipeline class of diffusers that is supported, by its name."""
    found = dict[str, str]()
    for name in MODELS:
        with suppress(DirectAlignError):  # not in the installed diffusers
            found[model_class(name).pipeline] = name
    return found


def load_model(
    settings: config.ModelConfig,
    device: torch.device | str,
    seed: int = 0,
    denoiser_device: torch.device | None = None,
    source: Source | None = None,
) -> Model:
    """Load a frozen pipeline with a denoiser that trains as `settings.tune` says.

    `seed` draws the adapters. `denoiser_device` places the denoiser on another device than the
    rest, from where a trainer shards it. `source`: a pipeline in memory, in place of model.path.
    Raises DirectAlignError for a folder, file or class that is missing, damaged or of another
    architecture.
    """
    architecture = model_class(settings.architecture)
    check_inputs(settings, architecture)
    with lora.denoiser_on(denoiser_device):
        source = source or open_source(settings)
        if source.pipeline is not None and settings.block_swap is not None:
            raise DirectAlignError(
                "model.block_swap: the pipeline is on its device: remove it, or train a recipe"
            )
        try:
            model = architecture(source, settings, torch.device(device), seed, **settings.args)
        except TypeError as error:
            if not settings.args:
                raise
            raise DirectAlignError(
                f"model.args: {settings.architecture} cannot be constructed with {settings.args} "
                f"({error}); correct them"
            ) from error
    accelerate(model.denoiser, settings)
    if denoiser_device is None:
        place_denoiser(model.denoiser, settings, torch.device(device))
    return model


def place_denoiser(denoiser: Any, settings: config.ModelConfig, device: torch.device) -> None:
    """Move a denoiser from the CPU to its device, as `settings.block_swap` says."""
    if settings.block_swap is None:
        denoiser.to(device)
    else:
        swap_blocks(denoiser, settings.block_swap, device)


def trainable(model: Model) -> dict[str, nn.Parameter]:
    """The trained parameters by name, float32: adapters, or all weights of the denoiser."""
    return lora.trained(model.denoiser)
