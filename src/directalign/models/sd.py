"""Stable Diffusion 1.x and 2.x: a UNet on a variance-preserving path that predicts the noise or v.

Read from the checkpoint: its table of alphas, the timesteps of its sampler, and what it predicts.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from ..types import Conditioning, Latents, PerSample
from .common import DDPMModel


class StableDiffusion(DDPMModel):
    """An SD checkpoint."""

    title = "SD"
    pipeline = "StableDiffusionPipeline"
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "scheduler": SchedulerMixin,
    }
    lora_layout = "sd"
    components = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    published = "sd1_5"

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, tokens, d) from CLIP."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        tokens = self._tokens(prompts, self.tokenizers[0].model_max_length)
        wants_mask = getattr(text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if wants_mask else None
        return {"sequence": text_encoder(tokens.input_ids, attention_mask=mask)[0]}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        timestep = self._timestep(x_t, sigma)
        return self._network(x_t.to(self.dtype), timestep, cond.tensors["sequence"])
