"""FLUX: rectified flow on packed tokens, a pooled CLIP embedding beside the T5 sequence.

FLUX.1 Kontext is the same network, which edits an image: its latents follow those that are sampled.

Read from the checkpoint: the scheduler's shift, whether guidance is an input of the network, the
length of the T5 sequence (512, or `max_sequence_length` in the folder's `directalign.json`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .. import config
from ..types import Conditioning, DirectAlignError, Images, Latents, PerSample
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
    caches_blocks = True
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
        images = [x_t, *(cond.tensors[name] for name in ("source",) if name in cond.tensors)]
        places = torch.cat([self._places(number, each) for number, each in enumerate(images)])
        sequence, guidance = cond.tensors["sequence"], cond.embedded_guidance
        if guidance is not None:
            guidance = torch.full((len(x_t),), float(guidance), device=self.device)
        tokens = self._network(
            hidden_states=torch.cat([pack(each) for each in images], 1).to(self.dtype),
            timestep=sigma.float(),
            guidance=guidance,
            pooled_projections=cond.tensors["pooled"],
            encoder_hidden_states=sequence,
            txt_ids=text_places(sequence.shape[1], self.device)[:, :3].float(),  # all 0
            img_ids=places,
        )
        return unpack(tokens[:, : h * w // 4], h, w)

    def _places(self, number: int, latents: Latents) -> Tensor:
        """(number, row, column) of the tokens of an image."""
        h, w = latents.shape[2:]
        places = image_places(h // 2, w // 2, self.device)[:, :3].float()
        places[:, 0] = number
        return places

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


class FluxKontext(Flux):
    """A FLUX.1 Kontext checkpoint; the source has the size of the image that is made."""

    title = "FLUX.1 Kontext"
    pipeline = "FluxKontextPipeline"
    edits_images = True
    components = "black-forest-labs/FLUX.1-Kontext-dev"
    published = "flux_1_kontext_dev"

    def encode_prompt(self, prompts: Sequence[str], sources: Images | None = None) -> Conditioning:
        """As for FLUX, with the latents of `sources` (b, c, h, w) as the tensor `source`."""
        cond = super().encode_prompt(prompts)
        if sources is None:
            return cond
        source = {"source": self.encode_image(sources)}
        both = (cond.tensors, cond.unconditional or {})
        tensors, unconditional = ({**each, **source} for each in both)
        return replace(cond, tensors=tensors, unconditional=unconditional)

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """As for FLUX, at the size of the rollout and the source, which the call would change."""
        height, width = self.default_size
        area = (rollout.height or height) * (rollout.width or width)
        return {**super().call_arguments(rollout), "max_area": area, "_auto_resize": False}
