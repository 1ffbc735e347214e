"""Sana: rectified flow on few latents of a deep VAE, 32 pixels each, beside a Gemma's tokens.

Prompts are lower-cased and read after a long instruction, of which the first token is kept; the
unconditional one without it. Checkpoints name a multistep solver; here, as with a plain Euler
scheduler in the pipeline, sampling is Euler under the same shift. Guidance takes two passes. Left
out: sizes changed to the nearest of a table, captions stripped of HTML, Sana Sprint, which is
another pipeline.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    SanaTransformer2DModel,
    SchedulerMixin,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import config
from ..types import Conditioning, DirectAlignError, Images, Latents, PerSample
from . import vae
from .common import DiffusersModel, parts_of

INSTRUCTION = "\n".join(
    [
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual "
        "descriptions suitable for image generation. Evaluate the level of detail in the user "
        "prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, and spatial relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round "
        "shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red "
        "flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
        "double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including "
        "any additional commentary or evaluations:",
        "User Prompt: ",
    ]
)
"""As in SanaPipeline's call."""


class Sana(DiffusersModel):
    """A Sana or Sana 1.5 checkpoint."""

    title = "Sana"
    masks_attention = True
    pipeline = "SanaPipeline"
    parts = parts_of(SanaTransformer2DModel, vae=AutoencoderDC, scheduler=SchedulerMixin)
    packing = 1
    components = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
    max_sequence_length = 300
    usual_cfg = 4.5
    published = "sana_1600m"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        cls._check_channels(folder, parts)
        settings = parts["scheduler"].config
        kind = settings.get("prediction_type", "flow_prediction")
        if kind != "flow_prediction" or settings.get("stochastic_sampling"):
            raise DirectAlignError(
                f"{folder / 'scheduler'}: prediction_type {kind} is not Sana's, which is "
                f"flow_prediction without noise: give a {cls.title} in model.path"
            )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        settings, network = parts["scheduler"].config, parts["transformer"].config
        self.tokenizers, self.vae = [parts["tokenizer"]], parts["vae"].to(self.device)
        self.scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=settings["num_train_timesteps"],
            shift=settings.get("flow_shift") or settings.get("shift", 1.0),
        )
        self.downscaling = 2 ** (len(self.vae.config["encoder_block_out_channels"]) - 1)
        self.time_scale = network["timestep_scale"]
        self.multiple = network["patch_size"] * self.downscaling
        self.default_size = (network["sample_size"] * self.downscaling,) * 2

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 300, d) and its boolean `mask` (b, 300)."""
        instruction = len(self.tokenizers[0](INSTRUCTION)["input_ids"])
        texts = [INSTRUCTION + prompt.lower().strip() for prompt in prompts]
        read = self._read(texts, instruction + self.max_sequence_length - 2)
        kept = [0, *range(1 - self.max_sequence_length, 0)]
        return {name: tensor[:, kept] for name, tensor in read.items()}

    def _empty_prompt(self) -> dict[str, Tensor]:
        with torch.no_grad(), self.prompts.on_device():
            return self._read([self.unconditional], self.max_sequence_length)

    def _read(self, texts: list[str], length: int) -> dict[str, Tensor]:
        tokens = self._tokens(texts, length, padding_side="right")
        mask = tokens.attention_mask
        states = self.prompts.modules["text_encoder"](tokens.input_ids, attention_mask=mask)[0]
        return {"sequence": states, "mask": mask.bool()}

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]: scaled, float32, no gradient."""
        with torch.no_grad():
            given = images.to(self.vae.device, self.vae.dtype) * 2 - 1
            found = self.vae.encode(given, return_dict=False)[0].float()
        return found * self.vae.config["scaling_factor"]

    def decode(self, x0: Latents) -> Images:
        """With gradient checkpointing, the VAE's blocks run again in the backward pass."""
        decoder, recompute = self.vae.decoder, self.model.gradient_checkpointing
        latents = (x0 / self.vae.config["scaling_factor"]).to(self.vae.dtype)
        hidden = decoder.conv_in(latents)
        if decoder.in_shortcut:
            hidden = hidden + latents.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        for block in reversed(decoder.up_blocks):
            hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
        hidden = decoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(hidden)).float() / 2 + 0.5

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        steps = self.scheduler.config["num_train_timesteps"]
        prediction = self._network(
            x_t.to(self.dtype),
            encoder_hidden_states=cond.tensors["sequence"],
            encoder_attention_mask=cond.tensors["mask"].to(self.dtype),
            timestep=(steps * sigma).float() * self.time_scale,
        )
        return prediction[:, : x_t.shape[1]]

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The Euler scheduler's own grid under the checkpoint's shift."""
        self.scheduler.set_timesteps(num_inference_steps)
        return self.scheduler.sigmas.double()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); sides are multiples of a patch."""
        channels = self.vae.config["latent_channels"]
        return channels, *vae.grid(height, width, self.downscaling, self.multiple)

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        return {**super().call_arguments(rollout), "use_resolution_binning": False}
