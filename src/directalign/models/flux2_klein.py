"""FLUX.2 klein: rectified flow on latents whose 2x2 blocks are channels already, beside three layers of a Qwen3.

Peculiar to it and kept in here: the network works on blocks, so latents are (b, 4c, h/2, w/2), scaled by the running mean and
variance of a batch norm in the VAE; prompts are padded to 512 tokens, all of which the network sees; the shift depends on the
number of steps too. The unconditional prompt is the empty one. A step-distilled checkpoint (`is_distilled` in its
model_index.json) takes no guidance at all. Left out: reference images, and FLUX.2 dev, which is another pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .. import config
from ..types import (
    Conditioning,
    DirectAlignError,
    Images,
    Latents,
    PathName,
    PerSample,
    PredictionName,
)
from . import common, lora, noise_schedule
from . import vae as autoencoder
from .checkpoint_source import Source
from .common import autocast, guided
from .components import dtypes_of, load_parts
from .text_encoder import PromptEncoder
from .weight_files import read_json

PARTS = {
    "tokenizer": None,
    "text_encoder": None,
    "transformer": Flux2Transformer2DModel,
    "vae": AutoencoderKLFlux2,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}
ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
FEED_FORWARD = (
    "ff.linear_in",
    "ff.linear_out",
    "ff_context.linear_in",
    "ff_context.linear_out",
    "attn.to_qkv_mlp_proj",
)
MAX_SEQUENCE_LENGTH = 512
TEXT_LAYERS = (9, 18, 27)
"""States of the text encoder that a token is made of; both numbers as in Flux2KleinPipeline's call."""


class Flux2Klein:
    """A FLUX.2 klein checkpoint as `interfaces.Family`."""

    path: PathName = "flow"
    prediction: PredictionName = "velocity"
    pipeline, part, text_parts = "Flux2KleinPipeline", "transformer", ("text_encoder",)
    parts: Mapping[str, Any] = PARTS
    lora_targets: tuple[str, ...] = ATTENTION + FEED_FORWARD

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        parts = load_parts(source, self.pipeline, PARTS, dtypes_of(PARTS, model, self.part))
        self.check(source.folder, parts)
        self.is_distilled = bool(
            read_json(source.folder / "model_index.json").get("is_distilled", False)
        )
        self.tokenizer, self.scheduler = parts["tokenizer"], parts["scheduler"]
        self.vae: AutoencoderKLFlux2 = autoencoder.ready(parts["vae"], model, device)
        self.block = 2 * 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.default_size = (self.vae.config["sample_size"],) * 2
        self.denoiser = lora.ready(parts["transformer"], model, self.lora_targets, device, seed)
        self.prompts = PromptEncoder(
            {name: parts[name] for name in self.text_parts},
            self._embed,
            device,
            model.text_encoders,
        )
        self.empty_prompt = self.prompts([""])

    @staticmethod
    def check(folder: FilePath, parts: Mapping[str, Any]) -> None:
        """A FLUX.2 klein, sampled by plain Euler: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        network, channels = parts["transformer"].config, parts["vae"].config["latent_channels"]
        if network["in_channels"] != 4 * channels:
            raise DirectAlignError(
                f"{folder / 'transformer'}: takes {network['in_channels']} channels, the VAE gives 4 x {channels}: give a FLUX.2 klein in model.path"
            )
        if network["guidance_embeds"]:
            raise DirectAlignError(
                f"{folder / 'transformer'}: guidance_embeds is on, which FLUX.2 klein has no use for: give a FLUX.2 klein in model.path"
            )
        layers = parts["text_encoder"].config.num_hidden_layers
        if layers < max(TEXT_LAYERS):
            raise DirectAlignError(
                f"{folder / 'text_encoder'}: has {layers} layers, the prompt is read from layers {TEXT_LAYERS}: give a FLUX.2 klein in model.path"
            )
        noise_schedule.check_euler(folder, parts["scheduler"])

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensor `sequence` (b, 512, d) of the three layers side by side, for the prompts and for the empty prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        text_encoder: Any = self.prompts.modules["text_encoder"]
        frame: dict[str, Any] = {
            "tokenize": False,
            "add_generation_prompt": True,
            "enable_thinking": False,
        }
        asked = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **frame)
            for prompt in prompts
        ]
        tokens = self.tokenizer(
            asked,
            padding="max_length",
            max_length=MAX_SEQUENCE_LENGTH,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        states = text_encoder.model(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return {"sequence": torch.cat([states[layer] for layer in TEXT_LAYERS], dim=-1)}

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]: the mode of the posterior in blocks, scaled, float32, no gradient."""
        with torch.no_grad():
            posterior = self.vae.encode(
                images.to(self.vae.device, self.vae.dtype) * 2 - 1, return_dict=False
            )[0]
        mean, std = _scale(self.vae)
        return (pixel_unshuffle(posterior.mode().float(), 2) - mean) / std

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact."""
        mean, std = _scale(self.vae)
        latents: Any = pixel_shuffle(x0 * std + mean, 2).to(self.vae.dtype)
        return self.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Velocity (noise − x0) at x_t, float32. Guidance that the checkpoint cannot take is an error."""
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                "embedded guidance: FLUX.2 klein has no input for it: leave rollout.embedded_guidance and method.embedded_guidance out"
            )
        if self.is_distilled and cond.cfg_scale != 1.0:
            raise DirectAlignError(
                f"cfg_scale {cond.cfg_scale}: this FLUX.2 klein is step-distilled and takes no guidance: set cfg_scale: 1, or give a base model"
            )

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            return self._velocity(x_t, sigma, tensors)

        return guided(call, cond)

    def _velocity(self, x_t: Latents, sigma: PerSample, tensors: Mapping[str, Tensor]) -> Latents:
        h, w = x_t.shape[2:]
        with autocast(self.device, self.dtype):
            tokens = self.denoiser(
                hidden_states=common.flatten(x_t).to(self.dtype),
                timestep=sigma.float(),
                encoder_hidden_states=tensors["sequence"],
                txt_ids=common.text_places(tensors["sequence"].shape[1], self.device),
                img_ids=common.image_places(h, w, self.device),
                guidance=None,
                return_dict=False,
            )[0]
        return common.unflatten(tokens.float(), h, w)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The grid of Flux2KleinPipeline: linspace(1, 1/n), shifted by the number of tokens and of steps; (n + 1,) float64."""
        _, h, w = self.latent_shape(height, width)
        return noise_schedule.euler_grid(
            self.scheduler, num_inference_steps, compute_empirical_mu(h * w, num_inference_steps)
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(4c, h, w) in blocks of 2x2 latents, which must fill both sides."""
        return 4 * self.vae.config["latent_channels"], *autoencoder.grid(
            height, width, self.block, self.block
        )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What Flux2KleinPipeline is told to sample as the rollout does."""
        return {
            "guidance_scale": rollout.cfg_scale,
            "max_sequence_length": MAX_SEQUENCE_LENGTH,
            "text_encoder_out_layers": TEXT_LAYERS,
        }

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for Flux2KleinPipeline.load_lora_weights, or `transformer/`."""
        lora.save(self.denoiser, folder, self.part, Flux2KleinPipeline)


def _scale(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a block, from the VAE's batch norm."""
    norm: Any = vae.bn
    return norm.running_mean.float().view(1, -1, 1, 1), (
        norm.running_var.float() + vae.config["batch_norm_eps"]
    ).sqrt().view(1, -1, 1, 1)
