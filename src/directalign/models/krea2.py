"""Krea 2: rectified flow on packed tokens beside several layers of a Qwen3-VL.

A prompt is read within Qwen-Image's instruction, which is then dropped, and padded before the
template's end; the network fuses the layers and has no places in the text, so only real tokens are
kept. Guidance takes two passes; its pipeline's guidance_scale counts from 0: `cfg_scale` s is
guidance_scale s - 1 there. A distilled checkpoint (Turbo, `is_distilled` in its model_index.json)
has a fixed shift and takes no guidance.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
from torch import Tensor
from transformers import Qwen3VLModel

from ..types import Conditioning, DirectAlignError, Latents, PerSample
from . import noise_schedule
from .common import DiffusersModel, image_places, pack, parts_of, unpack
from .text_encoder import joined
from .vae import VideoLatents

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PREFIX_TOKENS, SUFFIX_TOKENS = 34, 5
TEXT_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Hidden states of the text encoder, if model_index.json does not list others."""
DISTILLED_SHIFT = 1.15
"""All as in Krea2Pipeline."""


class Krea2(VideoLatents, DiffusersModel):
    """A Krea 2 checkpoint; a prompt's prediction does not depend on the others in its batch."""

    title = "Krea 2"
    masks_attention = True
    pipeline = "Krea2Pipeline"
    parts = parts_of(Krea2Transformer2DModel, (Qwen3VLModel,), vae=AutoencoderKLQwenImage)
    components = "krea/Krea-2-Raw"
    max_sequence_length = 512  # with the end of the template
    usual_cfg = 5.5
    guidance_origin = 1.0
    published = "krea_2"
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0"),
        *("ff.gate", "ff.up", "ff.down"),
    )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        self.tokenizers, self.scheduler = [parts["tokenizer"]], parts["scheduler"]
        self.vae = parts["vae"].to(self.device)
        self.downscaling = 2 ** len(self.vae.config["temperal_downsample"])
        self.default_size = (128 * self.downscaling,) * 2
        self.is_distilled = bool(self.index.get("is_distilled", False))
        self.text_layers = tuple(self.index.get("text_encoder_select_layers") or TEXT_LAYERS)
        if (patch := self.index.get("patch_size", 2)) != 2:
            raise DirectAlignError(
                f"{folder / 'model_index.json'}: patch_size is {patch}, and 2 is read: give a "
                "Krea 2 in model.path"
            )

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, tokens, layers, d) and its boolean `mask` (b, tokens)."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        length = self.max_sequence_length + PREFIX_TOKENS - SUFFIX_TOKENS
        start = self._tokens([PREFIX + prompt for prompt in prompts], length)
        end = self._tokens([SUFFIX] * len(prompts), SUFFIX_TOKENS)
        mask = torch.cat([start.attention_mask, end.attention_mask], dim=1).bool()
        places = (mask.long().cumsum(-1) - 1).clamp(min=0)  # padding takes no place
        states = text_encoder(
            input_ids=torch.cat([start.input_ids, end.input_ids], dim=1),
            attention_mask=mask,
            position_ids=places.expand(3, -1, -1),
            output_hidden_states=True,
        ).hidden_states
        kept = torch.stack([states[layer] for layer in self.text_layers], dim=2)[:, PREFIX_TOKENS:]
        rows = [row[own][None] for row, own in zip(kept, mask[:, PREFIX_TOKENS:], strict=True)]
        return joined(rows)

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        h, w = x_t.shape[2:]
        sequence, mask = cond.tensors["sequence"], cond.tensors["mask"]
        places = image_places(h // 2, w // 2, self.device)[:, :3].float()
        tokens = self._network(
            hidden_states=pack(x_t).to(self.dtype),
            encoder_hidden_states=sequence,
            timestep=sigma.float(),
            position_ids=torch.cat([places.new_zeros(sequence.shape[1], 3), places]),
            encoder_attention_mask=None if mask.all() else mask,  # attention is faster without
        )
        return unpack(tokens, h, w)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 1/n), shifted by tokens, or as distilled."""
        if not self.is_distilled:
            return super().sigmas(num_inference_steps, height, width)
        return noise_schedule.euler_grid(self.scheduler, num_inference_steps, DISTILLED_SHIFT)
