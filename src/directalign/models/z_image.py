"""Z-Image: rectified flow beside the prompt's tokens from the last layer but one of a Qwen3.

The network takes a list of images and a list of prompts of any lengths, gets 1 − sigma, and
predicts x0 − noise. Guidance takes two passes; its pipeline's guidance_scale counts from 0:
`cfg_scale` s is guidance_scale s − 1 there. Early releases of the library do not move in the last
of their n steps (diffusers 0.38); all steps move here. Left out: the pipeline's optional truncation
and normalisation of guidance, both off in its call, and the models that edit.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from ..types import Conditioning, DirectAlignError, Latents, PerSample
from .common import DiffusersModel, parts_of


class ZImage(DiffusersModel):
    """A Z-Image checkpoint; a prompt's prediction does not depend on the others in its batch."""

    title = "Z-Image"
    masks_attention = True
    pipeline = "ZImagePipeline"
    parts = parts_of(ZImageTransformer2DModel)
    packing = 1
    lora_layout = "z_image"
    components = "Tongyi-MAI/Z-Image"
    max_sequence_length = 512  # with the chat template
    usual_cfg = 5.0
    guidance_origin = 1.0
    published = "z_image"
    lora_targets = (
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    )

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super().check(folder, parts)
        if parts["transformer"].config.get("siglip_feat_dim") is not None:
            raise DirectAlignError(
                f"{folder / 'transformer'}: takes images too (siglip_feat_dim), which is not "
                "supported: give a plain Z-Image in model.path"
            )

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, tokens, d) and its boolean `mask` (b, tokens)."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        texts = self._chat(prompts, thinking=True)
        tokens = self._tokens(texts, self.max_sequence_length, padding=True, padding_side="right")
        mask = tokens.attention_mask.bool()
        states = text_encoder(
            tokens.input_ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states[-2]
        return {"sequence": states * mask[..., None], "mask": mask}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        frames = list(x_t.to(self.dtype)[:, :, None].unbind())
        sequences = [
            sequence[mask]
            for sequence, mask in zip(cond.tensors["sequence"], cond.tensors["mask"], strict=True)
        ]
        from_noise = self._network(frames, (1 - sigma).float(), sequences)
        return -torch.stack(from_noise)[:, :, 0]
