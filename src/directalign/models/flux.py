"""FLUX: rectified flow on packed tokens, a pooled CLIP embedding beside the T5 sequence.

Read from the checkpoint: the scheduler's shift, whether guidance is an input of the network, the
length of the T5 sequence (512, or `max_sequence_length` in the folder's `directalign.json`).
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .. import config
from ..types import Conditioning, DirectAlignError, Latents, PerSample
from .common import (
    JOINT_ATTENTION,
    DiffusersModel,
    image_places,
    pack,
    parts_of,
    text_places,
    unpack,
)
from .weight_files import read_json


class Flux(DiffusersModel):
    """A FLUX.1 checkpoint; a bfloat16 network gets sigma in bfloat16, as in FluxPipeline."""

    title = "FLUX model"
    pipeline = "FluxPipeline"
    parts = parts_of(FluxTransformer2DModel, (None, None))
    text_parts = ("text_encoder", "text_encoder_2")
    lora_layout = "flux"
    components = "black-forest-labs/FLUX.1-dev"
    published = "flux_1_dev"
    lora_targets = (
        *JOINT_ATTENTION,
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
    )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        self.embeds_guidance = bool(parts["transformer"].config["guidance_embeds"])
        file = folder / "directalign.json"
        length = read_json(file).get("max_sequence_length", 512) if file.exists() else 512
        if not isinstance(length, int) or length < 1:
            raise DirectAlignError(
                f"{file}: max_sequence_length is {length!r}: give a whole number of tokens, "
                "or leave it out for 512"
            )
        self.max_sequence_length = length

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`pooled` (b, d) from CLIP and `sequence` (b, tokens, D) from T5."""
        clip, t5 = (self.prompts.modules[name] for name in self.text_parts)
        clip_ids = self._tokens(prompts, self.tokenizers[0].model_max_length).input_ids
        t5_ids = self._tokens(prompts, self.max_sequence_length, 1).input_ids
        return {"pooled": clip(clip_ids).pooler_output, "sequence": t5(t5_ids)[0]}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        h, w = x_t.shape[2:]
        sequence, guidance = cond.tensors["sequence"], cond.embedded_guidance
        if guidance is not None:
            guidance = torch.full((len(x_t),), float(guidance), device=self.device)
        tokens = self._network(
            hidden_states=pack(x_t).to(self.dtype),
            timestep=sigma.float(),
            guidance=guidance,
            pooled_projections=cond.tensors["pooled"],
            encoder_hidden_states=sequence,
            txt_ids=text_places(sequence.shape[1], self.device)[:, :3].float(),  # all 0
            img_ids=image_places(h // 2, w // 2, self.device)[:, :3].float(),
        )
        return unpack(tokens, h, w)

    def _check_guidance(self, cond: Conditioning) -> None:
        keys = "rollout.embedded_guidance and method.embedded_guidance"
        if self.embeds_guidance and cond.embedded_guidance is None:
            raise DirectAlignError(
                f"this FLUX model takes its guidance as an input: give {keys} (3.5 is usual)"
            )
        if not self.embeds_guidance and cond.embedded_guidance is not None:
            raise DirectAlignError(
                f"embedded guidance {cond.embedded_guidance}: this FLUX model has no input for it: "
                f"leave {keys} out"
            )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        two_passes = {"negative_prompt": "", "true_cfg_scale": rollout.cfg_scale}
        return {
            **({} if rollout.cfg_scale == 1.0 else two_passes),
            "guidance_scale": rollout.embedded_guidance or 1.0,
            "max_sequence_length": self.max_sequence_length,
        }
