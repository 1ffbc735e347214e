"""FLUX: rectified flow on packed tokens, a pooled CLIP embedding beside the T5 sequence, guidance fed to the network.

Peculiar to a checkpoint and kept in here: packing, the scheduler's shift, the length of the T5 sequence (512, or
`max_sequence_length` in the folder's `directalign.json`), whether guidance is embedded, the VAE's constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor

from .. import config
from ..types import (
    Conditioning,
    DirectAlignError,
    Images,
    Latents,
    PathName,
    PerSample,
    PredictionName,
)
from . import common, lora, noise_schedule, vae
from .checkpoint_source import Source
from .common import autocast, guided
from .components import dtypes_of, load_parts
from .text_encoder import PromptEncoder
from .weight_files import read_json

PARTS = {
    "tokenizer": None,
    "tokenizer_2": None,
    "text_encoder": None,
    "text_encoder_2": None,
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}
ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
FEED_FORWARD = (
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
)


class Flux:
    """A FLUX checkpoint as `interfaces.Family`."""

    path: PathName = "flow"
    prediction: PredictionName = "velocity"
    pipeline, part, text_parts = "FluxPipeline", "transformer", ("text_encoder", "text_encoder_2")
    parts: Mapping[str, Any] = PARTS
    lora_targets: tuple[str, ...] = ATTENTION + FEED_FORWARD

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        parts = load_parts(source, self.pipeline, PARTS, dtypes_of(PARTS, model, self.part))
        self.tokenizer, self.tokenizer_2, self.scheduler = (
            parts["tokenizer"],
            parts["tokenizer_2"],
            parts["scheduler"],
        )
        self.vae: AutoencoderKL = vae.ready(parts["vae"], model, device)
        self.embeds_guidance = bool(parts["transformer"].config["guidance_embeds"])
        self.max_sequence_length = _max_sequence_length(source.folder)
        self.default_size = (self.vae.config["sample_size"],) * 2
        self.check(source.folder, parts)
        self.denoiser = lora.ready(parts["transformer"], model, self.lora_targets, device, seed)
        self.prompts = PromptEncoder(
            {name: parts[name] for name in self.text_parts},
            self._embed,
            device,
            model.text_encoders,
        )
        self.empty_prompt = self.prompts([""])

    @staticmethod
    def check(folder: FilePath, parts: Mapping[str, Any]) -> None:
        """A plain FLUX, sampled by plain Euler: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        channels, latents = (
            parts["transformer"].config["in_channels"],
            parts["vae"].config["latent_channels"],
        )
        if channels != 4 * latents:
            raise DirectAlignError(
                f"{folder / 'transformer'}: takes {channels} channels, text-to-image needs 4 x {latents}: give a plain FLUX model in model.path"
            )
        noise_schedule.check_euler(folder, parts["scheduler"])

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensors `pooled` (b, d) from CLIP and `sequence` (b, tokens, D) from T5, for the prompts and for the empty prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        clip_model, t5_model = (self.prompts.modules[name] for name in self.text_parts)
        clip = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        t5 = self.tokenizer_2(
            prompts,
            padding="max_length",
            max_length=self.max_sequence_length,
            truncation=True,
            return_tensors="pt",
        )
        return {
            "pooled": clip_model(clip.input_ids.to(self.device)).pooler_output,
            "sequence": t5_model(t5.input_ids.to(self.device))[0],
        }

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]."""
        return vae.encode_image(self.vae, images)

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact."""
        return vae.decode_latents(self.vae, x0)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Velocity (noise − x0) at x_t, float32; a bfloat16 network reads sigma in bfloat16, as it does in FluxPipeline.

        Guidance given to a network without an input for it, or missing for one with it, is an error.
        """
        guidance = self._guidance(cond, len(x_t))

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            return self._velocity(x_t, sigma, guidance, tensors)

        return guided(call, cond)

    def _velocity(
        self, x_t: Latents, sigma: PerSample, guidance: Tensor | None, tensors: Mapping[str, Tensor]
    ) -> Latents:
        h, w = x_t.shape[2:]
        with autocast(self.device, self.dtype):
            tokens = self.denoiser(
                hidden_states=common.pack(x_t).to(self.dtype),
                timestep=sigma.float(),
                guidance=guidance,
                pooled_projections=tensors["pooled"],
                encoder_hidden_states=tensors["sequence"],
                txt_ids=common.text_ids(tensors["sequence"].shape[1], self.device),
                img_ids=common.image_ids(h, w, self.device),
                return_dict=False,
            )[0]
        return common.unpack(tokens.float(), h, w)

    def _guidance(self, cond: Conditioning, b: int) -> Tensor | None:
        keys = "rollout.embedded_guidance and method.embedded_guidance"
        if self.embeds_guidance and cond.embedded_guidance is None:
            raise DirectAlignError(
                f"this FLUX model takes its guidance as an input: give {keys} (3.5 is usual)"
            )
        if not self.embeds_guidance and cond.embedded_guidance is not None:
            raise DirectAlignError(
                f"embedded guidance {cond.embedded_guidance}: this FLUX model has no input for it: leave {keys} out"
            )
        return (
            None
            if cond.embedded_guidance is None
            else torch.full((b,), float(cond.embedded_guidance), device=self.device)
        )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The grid of FluxPipeline: linspace(1, 1/n) under the scheduler's own shift, fixed or by the number of tokens; (n + 1,) float64."""
        _, h, w = self.latent_shape(height, width)
        return noise_schedule.euler_grid(
            self.scheduler,
            num_inference_steps,
            noise_schedule.shift_by_size(self.scheduler, (h // 2) * (w // 2)),
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides must be multiples of 2x2 latents."""
        return self.vae.config["latent_channels"], *vae.latent_size(
            self.vae, height, width, 2 * vae.downscaling(self.vae)
        )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What FluxPipeline is told to sample as the rollout does."""
        two_passes = (
            {}
            if rollout.cfg_scale == 1.0
            else {"negative_prompt": "", "true_cfg_scale": rollout.cfg_scale}
        )
        return {
            **two_passes,
            "guidance_scale": rollout.embedded_guidance or 1.0,
            "max_sequence_length": self.max_sequence_length,
        }

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for FluxPipeline.load_lora_weights, or `transformer/`."""
        lora.save(self.denoiser, folder, self.part, FluxPipeline)


def _max_sequence_length(folder: FilePath) -> int:
    file = folder / "directalign.json"
    length = read_json(file).get("max_sequence_length", 512) if file.exists() else 512
    if not isinstance(length, int) or length < 1:
        raise DirectAlignError(
            f"{file}: max_sequence_length is {length!r}: give a whole number of tokens, or leave it out for 512"
        )
    return length
