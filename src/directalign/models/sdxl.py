"""Stable Diffusion XL: a UNet on a DDPM path with two text encoders, told the size of its image beside the prompt.

Peculiar to a checkpoint and kept in here: its table of alphas and what it predicts (noise or v), whether the empty prompt is all
zeros (`force_zeros_for_empty_prompt`), a VAE that only float32 can hold (`force_upcast`). The size it is told is the image's own,
uncropped, as StableDiffusionXLPipeline does. Sampling is DDIM (eta 0) on the scheduler's own timesteps, to clean.
Left out: the refiner, other original sizes and crops, guidance_rescale, CLIP skip, a prompt per encoder, distilled guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

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
from . import common, lora, noise_schedule
from . import vae as autoencoder
from .checkpoint_source import Source
from .common import autocast, guided
from .components import dtypes_of, load_parts
from .text_encoder import PromptEncoder
from .weight_files import read_json

PARTS = {
    "tokenizer": None,
    "tokenizer_2": None,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "scheduler": SchedulerMixin,
}
TIME_IDS = 6
"""Original height and width, top and left of the crop, height and width."""


class StableDiffusionXL:
    """An SDXL checkpoint as `interfaces.Family`."""

    path: PathName = "vp"
    pipeline, part, text_parts = (
        "StableDiffusionXLPipeline",
        "unet",
        ("text_encoder", "text_encoder_2"),
    )
    parts: Mapping[str, Any] = PARTS
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        parts = load_parts(
            source,
            self.pipeline,
            PARTS,
            dtypes_of(PARTS, model, self.part) | _vae_dtype(source.folder, self.dtype),
        )
        self.tokenizers = [parts["tokenizer"], parts["tokenizer_2"]]
        self.vae: AutoencoderKL = autoencoder.ready(parts["vae"], model, device)
        self.scheduler = noise_schedule.ddim(source.folder / "scheduler", parts["scheduler"])
        self.prediction: PredictionName = noise_schedule.PREDICTIONS[
            self.scheduler.config["prediction_type"]
        ]
        self.levels = DDPMTable(self.scheduler.alphas_cumprod)
        self.default_size = noise_schedule.default_size(parts["unet"], self.vae)
        self.multiple = noise_schedule.multiple(parts["unet"], self.vae)
        self.check(source.folder, parts)
        self.denoiser = lora.ready(parts["unet"], model, self.lora_targets, device, seed)
        self.prompts = PromptEncoder(
            {name: parts[name] for name in self.text_parts},
            self._embed,
            device,
            model.text_encoders,
        )
        self.empty_prompt = self._empty_prompt(source.folder)

    @staticmethod
    def check(folder: FilePath, parts: Mapping[str, Any]) -> None:
        """A base SDXL with a DDPM table: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        noise_schedule.ddim(folder / "scheduler", parts["scheduler"])
        unet, vae = parts["unet"].config, parts["vae"].config
        noise_schedule.check_channels(folder, parts["unet"], parts["vae"])
        if unet["addition_embed_type"] != "text_time":
            raise DirectAlignError(
                f"{folder / 'unet'}: addition_embed_type is {unet['addition_embed_type']}, SDXL's is text_time: set model.architecture to match"
            )
        if unet["time_cond_proj_dim"] is not None:
            raise DirectAlignError(
                f"{folder / 'unet'}: takes its guidance as an input (time_cond_proj_dim), as distilled models do: give the model it was made from"
            )
        width, told = (
            unet["projection_class_embeddings_input_dim"],
            TIME_IDS * unet["addition_time_embed_dim"]
            + parts["text_encoder_2"].config.projection_dim,
        )
        if width != told:
            raise DirectAlignError(
                f"{folder / 'unet'}: takes {width} numbers beside the prompt, SDXL has {told} to tell: refiners are not read, give a base model"
            )
        if vae.get("latents_mean") is not None:
            raise DirectAlignError(
                f"{folder / 'vae'}: shifts its latents by channel (latents_mean): only SDXL's plain scaling_factor is read"
            )

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensors `pooled` (b, d) from the second CLIP and `sequence` (b, tokens, D) from both, for the prompts and for the empty prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        sequence, said = common.read_both(
            [self.prompts.modules[name] for name in self.text_parts], self.tokenizers, prompts
        )
        return {"pooled": said[1].text_embeds, "sequence": sequence}

    def _empty_prompt(self, folder: FilePath) -> dict[str, Tensor]:
        embedded = self.prompts([""])
        zeros = read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        return (
            {key: torch.zeros_like(tensor) for key, tensor in embedded.items()}
            if zeros
            else embedded
        )

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]."""
        return autoencoder.encode_image(self.vae, images)

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact; computed in float32 where the VAE asks for it."""
        return autoencoder.decode_latents(self.vae, x0)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Noise or v at x_t, float32. Give sigma in float64: near 1, timesteps lie closer than float32 can tell apart."""
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                "embedded guidance: SDXL has no input for it: leave rollout.embedded_guidance and method.embedded_guidance out, use cfg_scale"
            )
        timestep, time_ids = self.levels.timestep_of(sigma).to(x_t), self._time_ids(x_t)

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            added = {"text_embeds": tensors["pooled"], "time_ids": time_ids}
            with autocast(self.device, self.dtype):
                return self.denoiser(
                    x_t.to(self.dtype),
                    timestep,
                    tensors["sequence"],
                    added_cond_kwargs=added,
                    return_dict=False,
                )[0].float()

        return guided(call, cond)

    def _time_ids(self, x_t: Latents) -> Float[Tensor, "b 6"]:
        height, width = (side * autoencoder.downscaling(self.vae) for side in x_t.shape[2:])
        return torch.tensor(
            [[height, width, 0, 0, height, width]], dtype=torch.float32, device=x_t.device
        ).repeat(len(x_t), 1)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """Levels of DDIMScheduler's timesteps under the folder's own spacing and offset, then 0; (n + 1,) float64; the size plays no part."""
        return noise_schedule.sigmas(self.scheduler, self.levels, num_inference_steps)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides must fit the VAE and every halving of the UNet."""
        return self.vae.config["latent_channels"], *autoencoder.latent_size(
            self.vae, height, width, self.multiple
        )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What StableDiffusionXLPipeline is told to sample as the rollout does."""
        return {"guidance_scale": rollout.cfg_scale}

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for StableDiffusionXLPipeline.load_lora_weights, or `unet/`."""
        lora.save(self.denoiser, folder, self.part, StableDiffusionXLPipeline)


def _vae_dtype(folder: FilePath, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """SDXL's own VAE overflows in half precision and says so, as does one that says nothing; the repaired ones say it is off."""
    return {
        "vae": torch.float32
        if read_json(folder / "vae/config.json").get("force_upcast", True)
        else dtype
    }
