"""Qwen-Image 2.1: one causal sequence of the prompt's tokens, from Qwen3-VL, and the image's.

Rows are predicted one by one, since the places of an image's tokens begin where its prompt ends.
The VAE has an alpha channel: images are encoded opaque, and decoded ones laid over white. Guidance
takes two passes. A checkpoint with levels of its own (`sample_sigmas` in its model_index.json) is
sampled at those. Left out: condition images and the cache of their keys.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from .. import config
from ..types import Conditioning, DirectAlignError, Images, Latents, PerSample
from . import noise_schedule
from .common import DiffusersModel, parts_of
from .text_encoder import joined
from .vae import VideoLatents

MAX_SEQUENCE_LENGTH = 1024
"""Tokens of a prompt with its template; the pipeline has no limit."""
SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
TEMPLATE = SYSTEM + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""As in QwenImage21Pipeline."""


class QwenImage21(VideoLatents, DiffusersModel):
    """A Qwen-Image 2.1 checkpoint; a prompt's prediction does not depend on others in its batch."""

    title = "Qwen-Image 2.1"
    pipeline = "QwenImage21Pipeline"
    parts = parts_of(
        QwenImage21Transformer2DModel,
        (Qwen3VLForConditionalGeneration,),
        vae=AutoencoderKLQwenImage21,
        tokenizer="processor",
    )
    unconditional = " "
    packing = 1
    components = "Qwen/Qwen-Image-2.1"
    usual_cfg = 4.0
    published = "qwen_image_21"
    up_options = MappingProxyType({"first_chunk": True})
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("img_mlp.gate_layer", "img_mlp.proj", "img_mlp.out"),
    )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        reader = parts["processor"]  # of a pipeline in memory: with its tokenizer
        self.tokenizers = [getattr(reader, "tokenizer", reader)]
        self.scheduler, self.vae = parts["scheduler"], parts["vae"].to(self.device)
        self.downscaling = self.vae.config["scale_factor_spatial"]
        self.default_size = (64 * self.downscaling,) * 2
        self.levels = self.index.get("sample_sigmas")
        if (patch := self.vae.config["patch_size"]) is not None:
            raise DirectAlignError(
                f"{folder / 'vae'}: patch_size is {patch}, and none is read: give a "
                f"{self.title} in model.path"
            )

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, tokens, d), before the last norm, and its boolean `mask` (b, tokens)."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        dropped = len(self.tokenizers[0](SYSTEM)["input_ids"])
        handle = text_encoder.model.language_model.norm.register_forward_hook(
            lambda module, given, output: given[0]
        )
        rows = list[Tensor]()
        try:
            for prompt in prompts:
                text = TEMPLATE.format(prompt or self.unconditional)
                ids = self._tokens([text], MAX_SEQUENCE_LENGTH, padding=False).input_ids
                states = text_encoder.model(input_ids=ids, output_hidden_states=True).hidden_states
                rows.append(states[-1][:, dropped:])
        finally:
            handle.remove()
        return joined(rows)

    def encode_image(self, images: Images) -> Latents:
        return self._encoded(torch.cat([images, torch.ones_like(images[:, :1])], dim=1))

    def decode(self, x0: Latents) -> Images:
        """Colours over white; clamped, as before a viewer lays them over."""
        color, opacity = self._decoded(x0).clamp(0, 1).split([3, 1], dim=1)
        return color * opacity + 1 - opacity

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        h, w = x_t.shape[2:]
        rows = zip(
            x_t.to(self.dtype).flatten(2).transpose(1, 2),
            sigma.float(),
            cond.tensors["sequence"],
            cond.tensors["mask"],
            strict=True,
        )
        found = list[Tensor]()
        for latents, level, sequence, mask in rows:
            text = sequence[mask]
            slots = torch.arange(len(text) + h * w // 4, device=self.device) >= len(text)
            tokens = self._network(
                hidden_states=latents[None],
                timestep=level[None],
                encoder_hidden_states=text[None],
                img_shapes=[[(1, h, w)]],
                img_mask=slots[None],
            )
            found.append(tokens[:, -h * w :])
        return torch.cat(found).transpose(1, 2).unflatten(2, (h, w))

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 1/n), or the checkpoint's own, shifted by tokens."""
        _, h, w = self.latent_shape(height, width)
        exponent = noise_schedule.shift_by_size(self.scheduler, h * w)
        if self.levels is None:
            return noise_schedule.euler_grid(self.scheduler, num_inference_steps, exponent)
        if num_inference_steps != len(self.levels):
            raise DirectAlignError(
                f"rollout.num_inference_steps: {num_inference_steps}: this checkpoint is sampled "
                f"at {len(self.levels)} levels of its own: set it to {len(self.levels)}"
            )
        self.scheduler.set_timesteps(sigmas=self.levels, mu=exponent)
        return self.scheduler.sigmas.double()

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """Arguments for one prompt; the pipeline's images have an alpha channel."""
        two_passes = {"negative_prompt": self.unconditional, "true_cfg_scale": rollout.cfg_scale}
        return {} if rollout.cfg_scale == 1.0 else two_passes
