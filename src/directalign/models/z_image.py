"""Z-Image: rectified flow beside the prompt's own tokens from Qwen3, guided in two passes.

Peculiar to it and kept in here: the network takes a list of images and a list of prompts, each as long as it is, reads
1 − sigma, and says x0 − noise; prompts come from the last layer but one. Its pipeline's guidance_scale counts from 0:
`cfg_scale` s is guidance_scale s − 1 there. The unconditional prompt is the empty one. Left out: the pipeline's optional
truncation and normalisation of guidance, both off in its call, and the models that edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor

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
from . import lora, noise_schedule, vae
from .checkpoint_source import Source
from .common import autocast, guided
from .components import dtypes_of, load_parts
from .text_encoder import PromptEncoder

PARTS = {
    "tokenizer": None,
    "text_encoder": None,
    "transformer": ZImageTransformer2DModel,
    "vae": AutoencoderKL,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}
ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
MAX_SEQUENCE_LENGTH = 512
"""Tokens of a prompt with the frame around it, as in ZImagePipeline's call."""


class ZImage:
    """A Z-Image checkpoint as `interfaces.Family`."""

    path: PathName = "flow"
    prediction: PredictionName = "velocity"
    pipeline, part, text_parts = "ZImagePipeline", "transformer", ("text_encoder",)
    parts: Mapping[str, Any] = PARTS
    lora_targets: tuple[str, ...] = ATTENTION + FEED_FORWARD

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        parts = load_parts(source, self.pipeline, PARTS, dtypes_of(PARTS, model, self.part))
        self.check(source.folder, parts)
        self.tokenizer, self.scheduler = parts["tokenizer"], parts["scheduler"]
        self.vae: AutoencoderKL = vae.ready(parts["vae"], model, device)
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
        """A plain Z-Image, sampled by plain Euler: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        network, channels = parts["transformer"].config, parts["vae"].config["latent_channels"]
        if network["in_channels"] != channels:
            raise DirectAlignError(
                f"{folder / 'transformer'}: takes {network['in_channels']} channels, the VAE has {channels}: give a plain Z-Image in model.path"
            )
        if network.get("siglip_feat_dim") is not None:
            raise DirectAlignError(
                f"{folder / 'transformer'}: reads images too (siglip_feat_dim), which is not supported: give a plain Z-Image in model.path"
            )
        noise_schedule.check_euler(folder, parts["scheduler"])

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensors `sequence` (b, tokens, d) and its `mask` (b, tokens) of true and false, for the prompts and for the empty prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        text_encoder: Any = self.prompts.modules["text_encoder"]
        frame: dict[str, Any] = {
            "tokenize": False,
            "add_generation_prompt": True,
            "enable_thinking": True,
        }
        asked = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **frame)
            for prompt in prompts
        ]
        tokens = self.tokenizer(
            asked,
            padding=True,
            padding_side="right",
            max_length=MAX_SEQUENCE_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self.device).bool()
        states = text_encoder(
            tokens.input_ids.to(self.device), attention_mask=mask, output_hidden_states=True
        ).hidden_states[-2]
        return {"sequence": states * mask[..., None], "mask": mask}

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]."""
        return vae.encode_image(self.vae, images)

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact."""
        return vae.decode_latents(self.vae, x0)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Velocity (noise − x0) at x_t, float32; what a prompt gives does not depend on the longer prompts it is batched with."""
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                "embedded guidance: Z-Image has no input for it: leave rollout.embedded_guidance and method.embedded_guidance out"
            )

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            return self._velocity(x_t, sigma, tensors)

        return guided(call, cond)

    def _velocity(self, x_t: Latents, sigma: PerSample, tensors: Mapping[str, Tensor]) -> Latents:
        frames = list(x_t.to(self.dtype)[:, :, None].unbind())
        sequences = [
            sequence[mask]
            for sequence, mask in zip(tensors["sequence"], tensors["mask"], strict=True)
        ]
        with autocast(self.device, self.dtype):
            from_noise = self.denoiser(frames, (1 - sigma).float(), sequences, return_dict=False)[0]
        return -torch.stack(from_noise)[:, :, 0].float()

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The grid of ZImagePipeline: linspace(1, 1/n) under the scheduler's own shift, fixed or by the number of tokens; (n + 1,) float64.

        Early releases of the library stand still in the last of their n steps (diffusers 0.38 does); all of these move.
        """
        _, h, w = self.latent_shape(height, width)
        return noise_schedule.euler_grid(
            self.scheduler,
            num_inference_steps,
            noise_schedule.shift_by_size(self.scheduler, (h // 2) * (w // 2)),
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides must be multiples of 2x2 latents."""
        return self.vae.config["latent_channels"], *vae.latent_size(
            self.vae, height, width, 2 * vae.downscaling(self.vae)
        )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What ZImagePipeline is told to sample as the rollout does."""
        return {"guidance_scale": rollout.cfg_scale - 1, "max_sequence_length": MAX_SEQUENCE_LENGTH}

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for ZImagePipeline.load_lora_weights, or `transformer/`."""
        lora.save(self.denoiser, folder, self.part, ZImagePipeline)
