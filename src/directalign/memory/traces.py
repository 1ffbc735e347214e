"""The calls of an update, traced: the denoiser with and without gradient, the decoder with the reward, the encoders.

Each is the real network called in shapes alone (see weightless), with as few of its repeated blocks as tell the rest (see blocks).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pixel_shuffle
from torch.utils.checkpoint import checkpoint

from .. import config
from ..families import autoencoder, frame_autoencoder, tuning
from ..rewards.preprocessing import Preprocessing
from ..types import Images, Latents
from .blocks import by_blocks
from .calls import Shape, answer, arguments
from .live import Piece, measured
from .rounded import round_layers
from .weightless import Part, built, faked, normalise_as_on_gpu, quietly, residents


@dataclass(frozen=True)
class Denoiser:
    """A denoiser and how a recipe trains it; `model` is read for tune, lora, quantization, dtypes and gradient checkpointing."""

    family: str
    part: Part
    model: config.Model
    targets: tuple[str, ...]
    like_gpu: bool


def denoiser_call(of: Denoiser, shape: Shape, with_gradient: bool) -> Piece:
    """One call of the denoiser; with gradient, gradients of earlier losses are taken to be there already."""
    return _denoiser_call(of.family, of.part, _only_what_matters(of.model), of.targets, of.like_gpu, shape, with_gradient)


@cache
@quietly()
def _denoiser_call(family: str, part: Part, model: str, targets: tuple[str, ...], like_gpu: bool, shape: Shape, with_gradient: bool) -> Piece:
    settings = config.Model.model_validate_json(model)

    def trace(part: Part) -> Piece:
        network = prepared(built(part), settings, targets)
        if like_gpu:
            normalise_as_on_gpu(network)
        low = shape.dtype == torch.bfloat16
        with _faked(network, with_gradient), torch.set_grad_enabled(with_gradient):
            given = arguments(family, part.config, shape)

            def call() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    return answer(network(**given))

            return measured(call, residents(network))

    return by_blocks(part, trace)


def prepared(network: Any, model: config.Model, targets: tuple[str, ...]) -> Any:
    """As a family prepares it: in its dtype, rounded, open to training, recomputing."""
    network.to(getattr(torch, model.trained_dtype if model.tune == "full" else model.dtype))
    if model.quantization is not None:
        round_layers(network, model.quantization)
    tuning.make_trainable(network, model, targets, seed=0)
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


@dataclass(frozen=True)
class Judged:
    """The way from clean latents to a number: VAE decoder in `dtype`, then the image tower of a CLIP in float32 (None: a plain mean)."""

    vae: Part
    dtype: torch.dtype
    recompute: bool
    reward: Part | None
    preprocessing: Preprocessing | None
    recompute_reward: bool


@cache
@quietly()
def judging(of: Judged, latents: tuple[int, int, int, int], with_gradient: bool) -> Piece:
    """Decode latents (b, c, h, w), clamp, prepare, encode the images; with gradient back to the latents."""
    vae, reward = _vae(of), _reward(of)
    network = nn.ModuleList([vae] if reward is None else [vae, reward])
    with _faked(network), torch.set_grad_enabled(with_gradient):
        x0 = torch.empty(latents, requires_grad=with_gradient)

        def call() -> Tensor:
            images = decoded(vae, x0, of.recompute).clamp(0, 1)
            if reward is None or of.preprocessing is None:
                return images.mean()
            pooled = reward.vision_model(pixel_values=of.preprocessing(images)).pooler_output
            return reward.visual_projection(pooled).sum()

        return measured(call, residents(network))


def decoded(vae: Any, x0: Latents, recompute: bool) -> Images:
    """As the family of this VAE decodes."""
    kind = type(vae).__name__
    if kind == "AutoencoderKLQwenImage":
        return frame_autoencoder.decode(vae, x0, recompute)
    if kind == "AutoencoderKLFlux2":  # latents come as channels of 2x2 blocks
        return vae.decode(pixel_shuffle(x0, 2).to(vae.dtype), return_dict=False)[0].float() / 2 + 0.5
    return autoencoder.decode(vae, x0)


def _vae(of: Judged) -> Any:
    vae = built(of.vae)
    vae.to(of.dtype)
    if of.recompute and of.vae.class_name != "AutoencoderKLQwenImage":  # it has no switch of its own
        vae.enable_gradient_checkpointing()
    return vae


def _reward(of: Judged) -> Any:
    if of.reward is None:
        return None
    reward = built(of.reward)
    for layer in reward.vision_model.encoder.layers if of.recompute_reward else ():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    return reward


@cache
@quietly()
def encoding_images(vae: Part, dtype: torch.dtype, images: tuple[int, int, int, int]) -> Piece:
    """The VAE encoder on real images (b, 3, H, W), without gradient."""
    network = built(vae)
    network.to(dtype)
    shape = (images[0], 3, 1, *images[2:]) if vae.class_name == "AutoencoderKLQwenImage" else images
    with _faked(network), torch.no_grad():
        return measured(lambda: network.encode(torch.empty(shape, dtype=dtype), return_dict=False)[0].mode(), residents(network))


@cache
@quietly()
def encoding_prompts(part: Part, dtype: torch.dtype, b: int, tokens: int) -> Piece:
    """A text encoder on `b` prompts at their longest, all its hidden states asked for, without gradient."""

    def trace(part: Part) -> Piece:
        network = built(part)
        network.to(dtype)
        encoder = network.model.language_model if part.class_name.startswith("Qwen2_5_VL") else network
        with _faked(network), torch.no_grad():
            ids = torch.zeros(b, tokens, dtype=torch.long)
            return measured(lambda: encoder(input_ids=ids, output_hidden_states=True)[0], residents(network))

    return by_blocks(part, trace)


def _only_what_matters(model: config.Model) -> str:
    """The settings that a trace depends on, so that others do not make it anew."""
    read = {"family", "tune", "lora", "dtype", "trained_dtype", "quantization", "gradient_checkpointing"}
    return config.Model(path="", **{name: getattr(model, name) for name in read}).model_dump_json()


@contextmanager
def _faked(network: nn.Module, with_gradients: bool = False) -> Iterator[None]:
    """Inside, the network has fake tensors, and so have all tensors that are made."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    faked(network, mode, with_gradients)
    with mode:
        yield
