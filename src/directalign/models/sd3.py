"""Stable Diffusion 3 and 3.5: rectified flow on plain latents, two CLIP encoders and T5, two passes for guidance.

Peculiar to a checkpoint and kept in here: whether it has T5 (a folder whose model_index.json says null for text_encoder_3 is told
zeros in its place, as StableDiffusion3Pipeline does), the second attention of SD3.5-medium, how large an image its position
embeddings reach, the scheduler's shift. Left out: skip-layer guidance, image prompts, CLIP skip, a prompt per encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

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
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}
T5_PARTS = {"tokenizer_3": None, "text_encoder_3": T5EncoderModel}
T5_TOKENS = 256
"""Length of the T5 sequence, the pipeline's own."""
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
SECOND_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


class StableDiffusion3:
    """An SD3 or SD3.5 checkpoint as `interfaces.Family`."""

    path: PathName = "flow"
    prediction: PredictionName = "velocity"
    pipeline, part, text_parts = (
        "StableDiffusion3Pipeline",
        "transformer",
        ("text_encoder", "text_encoder_2", "text_encoder_3"),
    )
    parts: Mapping[str, Any] = PARTS | T5_PARTS

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        wanted = PARTS | (T5_PARTS if _has_t5(source.folder) else {})
        parts = load_parts(source, self.pipeline, wanted, dtypes_of(wanted, model, self.part))
        self.tokenizers, self.scheduler = (
            [parts[name] for name in wanted if name.startswith("tokenizer")],
            parts["scheduler"],
        )
        self.vae: AutoencoderKL = vae.ready(parts["vae"], model, device)
        self.architecture: Mapping[str, Any] = parts["transformer"].config
        self.default_size = (self.architecture["sample_size"] * vae.downscaling(self.vae),) * 2
        self.lora_targets: tuple[str, ...] = ATTENTION + (
            SECOND_ATTENTION if self.architecture["dual_attention_layers"] else ()
        )
        self.check(source.folder, parts)
        self.denoiser = lora.ready(parts["transformer"], model, self.lora_targets, device, seed)
        self.prompts = PromptEncoder(
            {name: parts[name] for name in self.text_parts if name in parts},
            self._embed,
            device,
            model.text_encoders,
        )
        self.empty_prompt = self.prompts([""])

    @staticmethod
    def check(folder: FilePath, parts: Mapping[str, Any]) -> None:
        """A plain SD3, sampled by plain Euler: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        channels, latents = (
            parts["transformer"].config["in_channels"],
            parts["vae"].config["latent_channels"],
        )
        if channels != latents:
            raise DirectAlignError(
                f"{folder / 'transformer'}: takes {channels} channels, text-to-image needs {latents}: give a plain SD3 model in model.path"
            )
        noise_schedule.check_euler(folder, parts["scheduler"])

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensors `pooled` (b, d) from both CLIPs and `sequence` (b, tokens, D) from CLIP, then T5, for the prompts and for the empty prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        encoders = [self.prompts.modules[name] for name in self.text_parts[:2]]
        clip, said = common.read_both(encoders, self.tokenizers[:2], prompts)
        t5 = self._embed_t5(prompts, clip)
        widened = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {
            "pooled": torch.cat([one.text_embeds for one in said], -1),
            "sequence": torch.cat([widened, t5], 1),
        }

    def _embed_t5(self, prompts: list[str], like: Tensor) -> Tensor:
        """T5's last hidden states (b, T5_TOKENS, D); zeros for a checkpoint without it."""
        if "text_encoder_3" not in self.prompts.modules:
            return like.new_zeros(len(prompts), T5_TOKENS, self.architecture["joint_attention_dim"])
        tokens = self.tokenizers[2](
            prompts,
            padding="max_length",
            max_length=T5_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        return self.prompts.modules["text_encoder_3"](tokens.input_ids.to(self.device))[0]

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]."""
        return vae.encode_image(self.vae, images)

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact."""
        return vae.decode_latents(self.vae, x0)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Velocity (noise − x0) at x_t, float32. Embedded guidance is an error: SD3 is guided by `cfg_scale`."""
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                "embedded guidance: SD3 has no input for it: leave rollout.embedded_guidance and method.embedded_guidance out, use cfg_scale"
            )
        timestep = (self.scheduler.config["num_train_timesteps"] * sigma).float()

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            with autocast(self.device, self.dtype):
                pred = self.denoiser(
                    hidden_states=x_t.to(self.dtype),
                    timestep=timestep,
                    pooled_projections=tensors["pooled"],
                    encoder_hidden_states=tensors["sequence"],
                    return_dict=False,
                )[0]
            return pred.float()

        return guided(call, cond)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The scheduler's own grid, its shift fixed (3 in the released models) or by the number of image tokens; (n + 1,) float64."""
        _, h, w = self.latent_shape(height, width)
        patch = self.architecture["patch_size"]
        self.scheduler.set_timesteps(
            num_inference_steps,
            mu=noise_schedule.shift_by_size(self.scheduler, (h // patch) * (w // patch)),
        )
        return self.scheduler.sigmas.double()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides must be multiples of a patch, and within reach of the position embeddings."""
        patch, most = (
            self.architecture["patch_size"] * vae.downscaling(self.vae),
            self.architecture["pos_embed_max_size"],
        )
        h, w = vae.latent_size(self.vae, height, width, patch)
        if most is not None and max(height, width) > most * patch:
            raise DirectAlignError(
                f"image size {height}x{width}: this model's position embeddings end at {most * patch} pixels a side (pos_embed_max_size {most}): ask for less"
            )
        return self.vae.config["latent_channels"], h, w

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What StableDiffusion3Pipeline is told to sample as the rollout does."""
        return {"guidance_scale": rollout.cfg_scale, "max_sequence_length": T5_TOKENS}

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for StableDiffusion3Pipeline.load_lora_weights, or `transformer/`."""
        lora.save(self.denoiser, folder, self.part, StableDiffusion3Pipeline)


def _has_t5(folder: FilePath) -> bool:
    library, _ = read_json(folder / "model_index.json").get("text_encoder_3") or (None, None)
    return library is not None
