"""Stable Diffusion 1.x and 2.x: a UNet on a variance-preserving path, predicting the noise or v, told DDPM timesteps.

Peculiar to a checkpoint and kept in here: its table of alphas, the timesteps its sampler visits, what it predicts. Sampling
is DDIM (eta 0) on the scheduler's own timesteps, to clean (`families/ddpm.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from .. import config
from ..diffusion.path import DDPMTable
from ..types import (
    Conditioning,
    DirectAlignError,
    Images,
    Latents,
    PathName,
    PerSample,
    PredictionName,
)
from . import lora, noise_schedule, vae
from .checkpoint_source import Source
from .common import autocast, guided
from .components import dtypes_of, load_parts
from .text_encoder import PromptEncoder

PARTS = {
    "tokenizer": None,
    "text_encoder": None,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "scheduler": SchedulerMixin,
}


class StableDiffusion:
    """An SD checkpoint as `interfaces.Family`."""

    path: PathName = "vp"
    pipeline, part, text_parts = "StableDiffusionPipeline", "unet", ("text_encoder",)
    parts: Mapping[str, Any] = PARTS
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        parts = load_parts(source, self.pipeline, PARTS, dtypes_of(PARTS, model, self.part))
        self.check(source.folder, parts)
        self.tokenizer = parts["tokenizer"]
        self.vae: AutoencoderKL = vae.ready(parts["vae"], model, device)
        self.scheduler = noise_schedule.ddim(source.folder / "scheduler", parts["scheduler"])
        self.prediction: PredictionName = noise_schedule.PREDICTIONS[
            self.scheduler.config["prediction_type"]
        ]
        self.levels = DDPMTable(self.scheduler.alphas_cumprod)
        self.default_size = noise_schedule.default_size(parts["unet"], self.vae)
        self.multiple = noise_schedule.multiple(parts["unet"], self.vae)
        self.denoiser = lora.ready(parts["unet"], model, self.lora_targets, device, seed)
        self.prompts = PromptEncoder(
            {name: parts[name] for name in self.text_parts},
            self._embed,
            device,
            model.text_encoders,
        )
        self.empty_prompt = self.prompts([""])

    @staticmethod
    def check(folder: FilePath, parts: Mapping[str, Any]) -> None:
        """A plain SD with a DDPM table: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        noise_schedule.ddim(folder / "scheduler", parts["scheduler"])
        noise_schedule.check_channels(folder, parts["unet"], parts["vae"])

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensor `sequence` (b, tokens, d) from CLIP, for the prompts and for the empty prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        text_encoder: Any = self.prompts.modules["text_encoder"]
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        wants_mask = getattr(text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if wants_mask else None
        return {"sequence": text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]}

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]."""
        return vae.encode_image(self.vae, images)

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact."""
        return vae.decode_latents(self.vae, x0)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Noise or v at x_t, float32. Give sigma in float64: near 1, timesteps lie closer than float32 can tell apart."""
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                "embedded guidance: SD has no input for it: leave rollout.embedded_guidance and method.embedded_guidance out, use cfg_scale"
            )
        timestep = self.levels.timestep_of(sigma).to(x_t)

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            with autocast(self.device, self.dtype):
                return self.denoiser(
                    x_t.to(self.dtype), timestep, tensors["sequence"], return_dict=False
                )[0].float()

        return guided(call, cond)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """Levels of DDIMScheduler's timesteps under the folder's own spacing and offset, then 0; (n + 1,) float64; the size plays no part."""
        return noise_schedule.sigmas(self.scheduler, self.levels, num_inference_steps)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides must fit the VAE and every halving of the UNet."""
        return self.vae.config["latent_channels"], *vae.latent_size(
            self.vae, height, width, self.multiple
        )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What StableDiffusionPipeline is told to sample as the rollout does."""
        return {"guidance_scale": rollout.cfg_scale}

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for StableDiffusionPipeline.load_lora_weights, or `unet/`."""
        lora.save(self.denoiser, folder, self.part, StableDiffusionPipeline)
