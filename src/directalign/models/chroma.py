"""Chroma: FLUX's blocks without a pooled embedding, beside T5; guidance takes two passes.

T5 reads a prompt without its padding, and the network sees one padding token of it: `mask`, ones
and zeros, is added to the logits of attention, as in ChromaPipeline. Left out: image prompts, and
Chroma1-Radiance, which works on pixels and is another network.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import config
from ..types import Conditioning, Latents, PerSample
from .checkpoint_source import Source
from .common import (
    JOINT_ATTENTION,
    DiffusersModel,
    image_places,
    pack,
    parts_of,
    text_places,
    unpack,
)


class Chroma(DiffusersModel):
    """A Chroma1 checkpoint (HD, Base, Flash)."""

    title = "Chroma"
    masks_attention = True
    pipeline = "ChromaPipeline"
    parts = parts_of(ChromaTransformer2DModel)
    components = "lodestones/Chroma1-HD"
    max_sequence_length = 512
    usual_cfg = 5.0
    published = "chroma1"
    lora_targets = (
        *JOINT_ATTENTION,
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
    )

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        super().__init__(source, model, device, seed)
        self.mask: Tensor | None = None
        if model.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing(self._checkpoint)

    def _checkpoint(self, block: Callable[..., Any], *arguments: Any) -> Any:
        """The library's network gives its single blocks no mask when it recomputes them."""
        is_single = len(arguments) == 3
        masked = (*arguments, self.mask) if is_single else arguments
        return checkpoint(block, *masked, use_reentrant=False)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 512, d) from T5 and `mask` (b, 512): 1 for its tokens and one more."""
        tokens = self._tokens(prompts, self.max_sequence_length)
        kept = tokens.attention_mask
        places = torch.arange(self.max_sequence_length, device=self.device)
        sequence = self.prompts.modules["text_encoder"](tokens.input_ids, attention_mask=kept)[0]
        return {"sequence": sequence, "mask": (places <= kept.sum(1, keepdim=True)).to(sequence)}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        h, w = x_t.shape[2:]
        sequence, mask = cond.tensors["sequence"], cond.tensors["mask"]
        self.mask = torch.cat([mask, mask.new_ones(len(mask), h * w // 4)], dim=1)
        tokens = self._network(
            hidden_states=pack(x_t).to(self.dtype),
            timestep=sigma.float(),
            encoder_hidden_states=sequence,
            txt_ids=text_places(sequence.shape[1], self.device)[:, :3].float(),  # all 0
            img_ids=image_places(h // 2, w // 2, self.device)[:, :3].float(),
            attention_mask=self.mask,
        )
        return unpack(tokens, h, w)
