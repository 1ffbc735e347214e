"""AuraFlow, and Pony v7: rectified flow on plain latents beside the tokens of a UMT5.

Padding of a prompt is set to zero, and the network sees it. Guidance takes two passes.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path as FilePath
from typing import Any

from diffusers import AuraFlowTransformer2DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from ..types import Conditioning, DirectAlignError, Latents, PerSample
from . import vae
from .common import JOINT_ATTENTION, DiffusersModel, parts_of


class AuraFlow(DiffusersModel):
    """An AuraFlow checkpoint."""

    title = "AuraFlow"
    pipeline = "AuraFlowPipeline"
    parts = parts_of(AuraFlowTransformer2DModel, (UMT5EncoderModel,))
    packing = 1
    components = "fal/AuraFlow-v0.3"
    max_sequence_length = 256
    usual_cfg = 3.5
    published = "aura_flow"
    lora_targets = (*JOINT_ATTENTION, *("linear_1", "linear_2", "out_projection"))

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        network, cell = parts["transformer"].config, vae.downscaling(self.vae)
        self.multiple = network["patch_size"] * cell
        self.default_size = (network["sample_size"] * cell,) * 2
        self.largest = isqrt(network["pos_embed_max_size"]) * self.multiple

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 256, d)."""
        tokens = self._tokens(prompts, self.max_sequence_length)
        mask = tokens.attention_mask
        states = self.prompts.modules["text_encoder"](tokens.input_ids, attention_mask=mask)[0]
        return {"sequence": states * mask[..., None]}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        return self._network(
            x_t.to(self.dtype),
            encoder_hidden_states=cond.tensors["sequence"],
            timestep=sigma.float(),
        )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The scheduler's own grid under its fixed shift."""
        self.scheduler.set_timesteps(num_inference_steps)
        return self.scheduler.sigmas.double()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides are multiples of a patch, and within the position embeddings."""
        shape = super().latent_shape(height, width)
        if max(height, width) > self.largest:
            raise DirectAlignError(
                f"image size {height}x{width}: this model's position embeddings end at "
                f"{self.largest} pixels a side: choose a smaller size"
            )
        return shape
