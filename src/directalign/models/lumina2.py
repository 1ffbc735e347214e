"""Lumina-Image 2.0: rectified flow beside a prompt's tokens, the last layer but one of a Gemma 2.

Prompts are read after a system message, the unconditional one without it. The network gets
1 - sigma and predicts x0 - noise. Guidance takes two passes and gives each row of the guided
prediction the norm that it has under the prompt. Its pipeline takes the number of channels for the
number of tokens where the shift depends on the size; so does this. Left out: truncated guidance.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from ..types import Conditioning, Latents, PerSample
from . import noise_schedule, vae
from .common import DiffusersModel, parts_of

SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of "
    "image-text alignment based on textual prompts or user prompts. <Prompt Start> "
)
"""As in Lumina2Pipeline."""


class Lumina2(DiffusersModel):
    """A Lumina-Image 2.0 checkpoint."""

    title = "Lumina 2"
    masks_attention = True
    pipeline = "Lumina2Pipeline"
    parts = parts_of(Lumina2Transformer2DModel)
    packing = 1
    components = "Alpha-VLLM/Lumina-Image-2.0"
    max_sequence_length = 256  # with the system message
    usual_cfg = 4.0
    published = "lumina_2"
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
    )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        network, cell = parts["transformer"].config, vae.downscaling(self.vae)
        self.default_size = (network["sample_size"] * cell,) * 2
        self.multiple = network["patch_size"] * cell

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        return self._read([SYSTEM + prompt for prompt in prompts])

    def _empty_prompt(self) -> dict[str, Tensor]:
        with torch.no_grad(), self.prompts.on_device():
            return self._read([self.unconditional])

    def _read(self, texts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 256, d) and its boolean `mask` (b, 256)."""
        tokens = self._tokens(texts, self.max_sequence_length, padding_side="right")
        states = self.prompts.modules["text_encoder"](
            tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-2]
        return {"sequence": states, "mask": tokens.attention_mask.bool()}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        from_noise = self._network(
            hidden_states=x_t.to(self.dtype),
            timestep=(1 - sigma).float(),
            encoder_hidden_states=cond.tensors["sequence"],
            encoder_attention_mask=cond.tensors["mask"],
        )
        return -from_noise

    def _guide(self, cond: Latents, uncond: Latents, scale: float) -> Latents:
        guided = super()._guide(cond, uncond, scale)
        return guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 1/n), under the scheduler's shift."""
        channels = self.vae.config["latent_channels"]
        exponent = noise_schedule.shift_by_size(self.scheduler, channels)
        return noise_schedule.euler_grid(self.scheduler, num_inference_steps, exponent)
