"""Qwen-Image: rectified flow on packed tokens beside the prompt's own tokens from Qwen2.5-VL, guided in two passes.

Peculiar to it and kept in here: the instruction around a prompt, whose tokens are dropped after they were read; a mask, since
prompts are as long as they are; the shift by the number of tokens; and two-pass guidance that gives each token of the guided
prediction the norm of the one under the prompt. The unconditional prompt is a single space, as the released model is used with
(cfg_scale 4). Left out: embedded guidance, for which diffusers' network has no layer, and the editing and layered models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor

from .. import config
from ..diffusion.path import classifier_free_guidance
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

PARTS = {
    "tokenizer": None,
    "text_encoder": None,
    "transformer": QwenImageTransformer2DModel,
    "vae": AutoencoderKLQwenImage,
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
FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
UNCONDITIONAL = " "
MAX_SEQUENCE_LENGTH = 512
"""Tokens of a prompt that the network sees, as in QwenImagePipeline's call."""


class QwenImage:
    """A Qwen-Image checkpoint as `interfaces.Family`."""

    path: PathName = "flow"
    prediction: PredictionName = "velocity"
    pipeline, part, text_parts = "QwenImagePipeline", "transformer", ("text_encoder",)
    parts: Mapping[str, Any] = PARTS
    lora_targets: tuple[str, ...] = ATTENTION + FEED_FORWARD

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        parts = load_parts(source, self.pipeline, PARTS, dtypes_of(PARTS, model, self.part))
        self.check(source.folder, parts)
        self.tokenizer, self.scheduler = parts["tokenizer"], parts["scheduler"]
        self.vae: AutoencoderKLQwenImage = parts["vae"].to(device)
        library: Any = QwenImagePipeline(**parts)
        self.template, self.dropped = (
            library.prompt_template_encode,
            library.prompt_template_encode_start_idx,
        )
        self.downscaling = library.vae_scale_factor
        self.default_size = (library.default_sample_size * self.downscaling,) * 2
        self.denoiser = lora.ready(parts["transformer"], model, self.lora_targets, device, seed)
        self.prompts = PromptEncoder(
            {name: parts[name] for name in self.text_parts},
            self._embed,
            device,
            model.text_encoders,
        )
        self.empty_prompt = self.prompts([UNCONDITIONAL])

    @staticmethod
    def check(folder: FilePath, parts: Mapping[str, Any]) -> None:
        """A plain Qwen-Image, sampled by plain Euler: asks the configs of these parts of `folder` alone; anything else is an error that names the file."""
        network, channels = parts["transformer"].config, parts["vae"].config["z_dim"]
        if network["in_channels"] != 4 * channels:
            raise DirectAlignError(
                f"{folder / 'transformer'}: takes {network['in_channels']} channels, text-to-image needs 4 x {channels}: give a plain Qwen-Image in model.path"
            )
        for name in ("guidance_embeds", "use_additional_t_cond"):
            if network.get(name):
                raise DirectAlignError(
                    f"{folder / 'transformer'}: {name} is on, which plain text-to-image has no input for: give a plain Qwen-Image in model.path"
                )
        noise_schedule.check_euler(folder, parts["scheduler"])

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Tensors `sequence` (b, tokens, d) and its `mask` (b, tokens) of true and false, for the prompts and for a space."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        text_encoder: Any = self.prompts.modules["text_encoder"]
        asked = [self.template.format(prompt) for prompt in prompts]
        length = self.dropped + MAX_SEQUENCE_LENGTH
        tokens = self.tokenizer(
            asked,
            padding=True,
            padding_side="right",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        states = text_encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
        mask = tokens.attention_mask[:, self.dropped :].bool()
        return {"sequence": states[:, self.dropped :] * mask[..., None], "mask": mask}

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]."""
        return vae.encode_frame(self.vae, images)

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, gradient intact."""
        return vae.decode_frame(self.vae, x0, self.model.gradient_checkpointing)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """Velocity (noise − x0) at x_t, float32; what a prompt gives does not depend on the longer prompts it is batched with."""
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                "embedded guidance: Qwen-Image has no input for it: leave rollout.embedded_guidance and method.embedded_guidance out"
            )

        def call(tensors: Mapping[str, Tensor]) -> Latents:
            return self._velocity(x_t, sigma, tensors)

        return guided(call, cond, _with_norm_of_conditional)

    def _velocity(self, x_t: Latents, sigma: PerSample, tensors: Mapping[str, Tensor]) -> Latents:
        b, _, h, w = x_t.shape
        mask = tensors["mask"]
        with autocast(self.device, self.dtype):
            tokens = self.denoiser(
                hidden_states=common.pack(x_t).to(self.dtype),
                timestep=sigma.float(),
                encoder_hidden_states=tensors["sequence"],
                encoder_hidden_states_mask=None
                if mask.all()
                else mask,  # attention is faster without one
                img_shapes=[[(1, h // 2, w // 2)]] * b,
                return_dict=False,
            )[0]
        return common.unpack(tokens.float(), h, w)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The grid of QwenImagePipeline: linspace(1, 1/n) under the scheduler's own shift, fixed or by the number of tokens; (n + 1,) float64."""
        _, h, w = self.latent_shape(height, width)
        return noise_schedule.euler_grid(
            self.scheduler,
            num_inference_steps,
            noise_schedule.shift_by_size(self.scheduler, (h // 2) * (w // 2)),
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides must be multiples of 2x2 latents."""
        return self.vae.config["z_dim"], *vae.grid(
            height, width, self.downscaling, 2 * self.downscaling
        )

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """What QwenImagePipeline is told to sample one prompt as the rollout does."""
        two_passes = {} if rollout.cfg_scale == 1.0 else {"negative_prompt": UNCONDITIONAL}
        return {
            **two_passes,
            "true_cfg_scale": rollout.cfg_scale,
            "max_sequence_length": MAX_SEQUENCE_LENGTH,
        }

    def save(self, folder: FilePath) -> None:
        """`lora.safetensors` for QwenImagePipeline.load_lora_weights, or `transformer/`."""
        lora.save(self.denoiser, folder, self.part, QwenImagePipeline)


def _with_norm_of_conditional(cond: Latents, uncond: Latents, scale: float) -> Latents:
    """Classifier-free guidance, each 2x2 block of latents scaled to the norm that it has under the prompt alone."""
    tokens, own = common.pack(classifier_free_guidance(cond, uncond, scale)), common.pack(cond)
    return common.unpack(
        tokens * (own.norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)),
        *cond.shape[2:],
    )
