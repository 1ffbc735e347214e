"""The calls of an update, traced: the denoiser with and without gradient, the encoders; decoder and rewards are in `judging`.

Each is the real network called in shapes alone (see weightless), with as few of its repeated blocks as tell the rest (see blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..models import lora
from .blocks import by_blocks
from .calls import Shape, answer, arguments
from .live import Piece, measured
from .rounded import round_layers
from .weightless import Part, built, in_shapes_alone, normalise_as_on_gpu, quietly, residents


@dataclass(frozen=True)
class Denoiser:
    """A denoiser and how a recipe trains it; `model` is read for tune, lora, quantization, dtypes and gradient checkpointing."""

    family: str
    part: Part
    model: config.ModelConfig
    targets: tuple[str, ...]
    like_gpu: bool


def denoiser_call(of: Denoiser, shape: Shape, with_gradient: bool) -> Piece:
    """One call of the denoiser; with gradient, gradients of earlier losses are taken to be there already."""
    return _denoiser_call(
        of.family,
        of.part,
        _only_what_matters(of.model),
        of.targets,
        of.like_gpu,
        shape,
        with_gradient,
    )


@cache
@quietly()
def _denoiser_call(
    family: str,
    part: Part,
    model: str,
    targets: tuple[str, ...],
    like_gpu: bool,
    shape: Shape,
    with_gradient: bool,
) -> Piece:
    settings = config.ModelConfig.model_validate_json(model)

    def trace(part: Part) -> Piece:
        network = prepared(built(part), settings, targets)
        if like_gpu:
            normalise_as_on_gpu(network)
        low = shape.dtype == torch.bfloat16
        with in_shapes_alone(network, with_gradient), torch.set_grad_enabled(with_gradient):
            given = arguments(family, part.config, shape)

            def call() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    return answer(network(**given))

            return measured(call, residents(network))

    return by_blocks(part, trace)


def prepared(network: Any, model: config.ModelConfig, targets: tuple[str, ...]) -> Any:
    """As a family prepares it: in its dtype, rounded, open to training, recomputing."""
    network.to(getattr(torch, model.trained_dtype if model.tune == "full" else model.dtype))
    if model.quantization is not None:
        round_layers(network, model.quantization)
    lora.make_trainable(network, model, targets, seed=0)
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


@cache
@quietly()
def encoding_images(vae: Part, dtype: torch.dtype, images: tuple[int, int, int, int]) -> Piece:
    """The VAE encoder on real images (b, 3, H, W), without gradient."""
    network = built(vae)
    network.to(dtype)
    shape = (images[0], 3, 1, *images[2:]) if vae.class_name == "AutoencoderKLQwenImage" else images
    with in_shapes_alone(network), torch.no_grad():
        return measured(
            lambda: network.encode(torch.empty(shape, dtype=dtype), return_dict=False)[0].mode(),
            residents(network),
        )


@cache
@quietly()
def encoding_prompts(part: Part, dtype: torch.dtype, b: int, tokens: int) -> Piece:
    """A text encoder on `b` prompts at their longest, all its hidden states asked for, without gradient."""

    def trace(part: Part) -> Piece:
        network = built(part)
        network.to(dtype)
        encoder = (
            network.model.language_model if part.class_name.startswith("Qwen2_5_VL") else network
        )
        with in_shapes_alone(network), torch.no_grad():
            ids = torch.zeros(b, tokens, dtype=torch.long)
            return measured(
                lambda: encoder(input_ids=ids, output_hidden_states=True)[0], residents(network)
            )

    return by_blocks(part, trace)


def _only_what_matters(model: config.ModelConfig) -> str:
    """The settings that a trace depends on, so that others do not make it anew."""
    read = {
        "family",
        "tune",
        "lora",
        "dtype",
        "trained_dtype",
        "quantization",
        "gradient_checkpointing",
    }
    return config.ModelConfig(
        path="", **{name: getattr(model, name) for name in read}
    ).model_dump_json()
