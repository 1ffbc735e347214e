"""Stable Diffusion 3 and 3.5: rectified flow on plain latents, with two CLIP encoders and T5.

Read from the checkpoint: whether it has T5 (if model_index.json says null for text_encoder_3, zeros
take its place, as in StableDiffusion3Pipeline), the second attention of SD3.5-medium, the largest
image of its position embeddings, the scheduler's shift. Guidance takes two passes. Left out:
skip-layer guidance, image prompts, CLIP skip, a prompt per encoder.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from ..types import Conditioning, DirectAlignError, Latents, PerSample
from . import noise_schedule, vae
from .common import JOINT_ATTENTION, DiffusersModel, parts_of

SECOND_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


class StableDiffusion3(DiffusersModel):
    """An SD3 or SD3.5 checkpoint."""

    title = "SD3"
    pipeline = "StableDiffusion3Pipeline"
    parts = parts_of(
        SD3Transformer2DModel,
        (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel),
    )
    optional_parts = ("tokenizer_3", "text_encoder_3")
    text_parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    packing = 1
    lora_layout = "sd3"
    components = "stabilityai/stable-diffusion-3.5-medium"
    max_sequence_length = 256  # of the T5 sequence
    usual_cfg = 4.5
    published = "sd3_5_large"
    lora_targets = JOINT_ATTENTION

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        self.network_config: Mapping[str, Any] = parts["transformer"].config
        cell = vae.downscaling(self.vae)
        self.default_size = (self.network_config["sample_size"] * cell,) * 2
        self.multiple = self.network_config["patch_size"] * cell
        if self.network_config["dual_attention_layers"]:
            self.lora_targets = (*self.lora_targets, *SECOND_ATTENTION)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`pooled` (b, d) from both CLIPs and `sequence` (b, tokens, D) from CLIP, then T5."""
        clip, outputs = self._clip_states(prompts)
        if "text_encoder_3" in self.prompts.modules:
            ids = self._tokens(prompts, self.max_sequence_length, 2).input_ids
            t5 = self.prompts.modules["text_encoder_3"](ids)[0]
        else:
            width = self.network_config["joint_attention_dim"]
            t5 = clip.new_zeros(len(prompts), self.max_sequence_length, width)
        widened = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {
            "pooled": torch.cat([output.text_embeds for output in outputs], -1),
            "sequence": torch.cat([widened, t5], 1),
        }

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        return self._network(
            hidden_states=x_t.to(self.dtype),
            timestep=(self.scheduler.config["num_train_timesteps"] * sigma).float(),
            pooled_projections=cond.tensors["pooled"],
            encoder_hidden_states=cond.tensors["sequence"],
        )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The scheduler's grid; its shift is fixed (3 in the released models) or by tokens."""
        _, h, w = self.latent_shape(height, width)
        patch = self.network_config["patch_size"]
        exponent = noise_schedule.shift_by_size(self.scheduler, (h // patch) * (w // patch))
        self.scheduler.set_timesteps(num_inference_steps, mu=exponent)
        return self.scheduler.sigmas.double()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides are multiples of a patch, and within the position embeddings."""
        shape, most = super().latent_shape(height, width), self.network_config["pos_embed_max_size"]
        if most is not None and max(height, width) > most * self.multiple:
            raise DirectAlignError(
                f"image size {height}x{width}: this model's position embeddings end at "
                f"{most * self.multiple} pixels a side (pos_embed_max_size {most}): choose a "
                "smaller size"
            )
        return shape
