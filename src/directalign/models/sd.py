"""Stable Diffusion 1.x, 2.x and XL: UNets on a variance-preserving path, predicting noise or v.

Read from the checkpoint: its table of alphas, the timesteps of its sampler, and what it predicts;
for XL also whether the empty prompt is all zeros (`force_zeros_for_empty_prompt`) and whether the
VAE needs float32 (`force_upcast`). XL has two text encoders and gets the image's own size,
uncropped, as in StableDiffusionXLPipeline. Left out: the refiner, other original sizes and crops,
guidance_rescale, CLIP skip, a prompt per encoder, distilled guidance.

Kolors is SDXL's UNet beside a ChatGLM3, whose class and tokenizer are in diffusers' pipeline. The
empty prompt is always encoded: with `force_zeros_for_empty_prompt`, KolorsPipeline cannot be called
with guidance. Left out: image prompts.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..types import Conditioning, DirectAlignError, Latents, PerSample
from . import vae
from .common import DDPMModel, parts_of
from .weight_files import read_json

TIME_IDS = 6
"""Original height and width, top and left of the crop, height and width."""


class StableDiffusion(DDPMModel):
    """An SD checkpoint."""

    title = "SD"
    pipeline = "StableDiffusionPipeline"
    parts = parts_of(UNet2DConditionModel, part="unet", scheduler=SchedulerMixin)
    lora_layout = "sd"
    components = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    usual_cfg = 7.5
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


class StableDiffusionXL(DDPMModel):
    """An SDXL checkpoint."""

    title = "SDXL"
    pipeline = "StableDiffusionXLPipeline"
    parts = parts_of(
        UNet2DConditionModel,
        (CLIPTextModel, CLIPTextModelWithProjection),
        part="unet",
        scheduler=SchedulerMixin,
    )
    text_parts = ("text_encoder", "text_encoder_2")
    lora_layout = "sdxl"
    components = "stabilityai/stable-diffusion-xl-base-1.0"
    usual_cfg = 5.0
    published = "sdxl_base"

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super().check(folder, parts)
        unet, file = parts["unet"].config, folder / "unet"
        if unet["addition_embed_type"] != "text_time":
            raise DirectAlignError(
                f"{file}: addition_embed_type is {unet['addition_embed_type']}, that of "
                f"{cls.title} is text_time: set model.architecture to match"
            )
        if unet["time_cond_proj_dim"] is not None:
            raise DirectAlignError(
                f"{file}: takes its guidance as an input (time_cond_proj_dim), as distilled models "
                "do: give the model it was made from"
            )
        width = unet["projection_class_embeddings_input_dim"]
        wanted = TIME_IDS * unet["addition_time_embed_dim"] + cls._pooled_width(parts)
        if width != wanted:
            raise DirectAlignError(
                f"{file}: takes {width} numbers beside the prompt, {cls.title} gives {wanted}: "
                "refiners are not read, give a base model"
            )
        if parts["vae"].config.get("latents_mean") is not None:
            raise DirectAlignError(
                f"{folder / 'vae'}: shifts its latents by channel (latents_mean): "
                "only SDXL's plain scaling_factor is read"
            )

    @classmethod
    def _pooled_width(cls, parts: Mapping[str, Any]) -> int:
        return parts["text_encoder_2"].config.projection_dim

    def _dtypes(self, folder: FilePath) -> dict[str, torch.dtype]:
        """SDXL's own VAE overflows in half precision; repaired ones set `force_upcast` to false."""
        upcast = read_json(folder / "vae/config.json").get("force_upcast", True)
        return {"vae": torch.float32} if upcast else {}

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`pooled` (b, d) from the second CLIP and `sequence` (b, tokens, D) from both."""
        sequence, outputs = self._clip_states(prompts)
        return {"pooled": outputs[1].text_embeds, "sequence": sequence}

    def _empty_prompt(self) -> dict[str, Tensor]:
        embedded = super()._empty_prompt()
        if self.index.get("force_zeros_for_empty_prompt", True):
            return {key: torch.zeros_like(tensor) for key, tensor in embedded.items()}
        return embedded

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        height, width = (side * vae.downscaling(self.vae) for side in x_t.shape[2:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        return self._network(
            x_t.to(self.dtype),
            self._timestep(x_t, sigma),
            cond.tensors["sequence"],
            added_cond_kwargs={
                "text_embeds": cond.tensors["pooled"],
                "time_ids": time_ids.to(x_t.device).repeat(len(x_t), 1),
            },
        )


class Kolors(StableDiffusionXL):
    """A Kolors checkpoint."""

    title = "Kolors"
    pipeline = "KolorsPipeline"
    parts = parts_of(UNet2DConditionModel, part="unet", scheduler=SchedulerMixin)
    text_parts = ("text_encoder",)
    lora_layout = ""
    components = "Kwai-Kolors/Kolors-diffusers"
    max_sequence_length = 256
    published = "kolors"

    @classmethod
    def _pooled_width(cls, parts: Mapping[str, Any]) -> int:
        return parts["text_encoder"].config.hidden_size

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 256, d), the last layer but one, and `pooled` (b, d), the last token."""
        tokens = self._tokens(prompts, self.max_sequence_length)
        mask = tokens.attention_mask
        states = self.prompts.modules["text_encoder"](
            tokens.input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),  # padding is in front
            output_hidden_states=True,
            use_cache=False,
            return_dict=False,
        )[-1]
        return {
            "pooled": states[-1][-1].clone(),
            "sequence": states[-2].transpose(0, 1).contiguous(),  # (tokens, b, d) in this library
        }

    def _empty_prompt(self) -> dict[str, Tensor]:
        return self.prompts([self.unconditional])
