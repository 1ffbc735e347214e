"""FLUX.2 klein: rectified flow on latents in blocks of 2x2, beside three layers of a Qwen3.

The network works on blocks, so latents are (b, 4c, h/2, w/2), scaled by the running mean and
variance of a batch norm in the VAE. Prompts are padded to 512 tokens, all of which the network
sees. The shift depends on the number of steps too. A step-distilled checkpoint (`is_distilled` in
its model_index.json) takes no guidance. Left out: reference images, and FLUX.2 dev, which is
another pipeline.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .. import config
from ..types import Conditioning, DirectAlignError, Images, Latents, PerSample
from . import noise_schedule, vae
from .common import JOINT_ATTENTION, DiffusersModel, image_places, parts_of, text_places

MAX_SEQUENCE_LENGTH = 512
TEXT_LAYERS = (9, 18, 27)
"""Hidden states of the text encoder that a token is made of; both as in Flux2KleinPipeline's call.
"""


class Flux2Klein(DiffusersModel):
    """A FLUX.2 klein checkpoint."""

    title = "FLUX.2 klein"
    pipeline = "Flux2KleinPipeline"
    parts = parts_of(Flux2Transformer2DModel, vae=AutoencoderKLFlux2)
    lora_layout = "flux2_klein"
    components = "black-forest-labs/FLUX.2-klein-base-4B"
    published = "flux_2_klein_4b"
    lora_targets = (
        *JOINT_ATTENTION,
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        "attn.to_qkv_mlp_proj",
    )

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super().check(folder, parts)
        if parts["transformer"].config["guidance_embeds"]:
            raise DirectAlignError(
                f"{folder / 'transformer'}: guidance_embeds is on, which FLUX.2 klein does not "
                "use: give a FLUX.2 klein in model.path"
            )
        layers = parts["text_encoder"].config.num_hidden_layers
        if layers < max(TEXT_LAYERS):
            raise DirectAlignError(
                f"{folder / 'text_encoder'}: has {layers} layers, prompts are read from layers "
                f"{TEXT_LAYERS}: give a FLUX.2 klein in model.path"
            )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        self.is_distilled = bool(self.index.get("is_distilled", False))

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 512, d): the three layers side by side."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        tokens = self._tokens(self._chat(prompts, thinking=False), MAX_SEQUENCE_LENGTH)
        states = text_encoder.model(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return {"sequence": torch.cat([states[layer] for layer in TEXT_LAYERS], dim=-1)}

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]: posterior mode in blocks, scaled, no gradient."""
        mean, std = self._statistics()
        return (pixel_unshuffle(vae.posterior_mode(self.vae, images), 2) - mean) / std

    def decode(self, x0: Latents) -> Images:
        mean, std = self._statistics()
        return vae.decode_unscaled(self.vae, pixel_shuffle(x0 * std + mean, 2))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of a block, from the VAE's batch norm."""
        norm, epsilon = self.vae.bn, self.vae.config["batch_norm_eps"]
        mean, variance = (
            each.float().view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var)
        )
        return mean, (variance + epsilon).sqrt()

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        h, w = x_t.shape[2:]
        sequence = cond.tensors["sequence"]
        tokens = self._network(
            hidden_states=x_t.flatten(2).transpose(1, 2).to(self.dtype),
            timestep=sigma.float(),
            encoder_hidden_states=sequence,
            txt_ids=text_places(sequence.shape[1], self.device),
            img_ids=image_places(h, w, self.device),
            guidance=None,
        )
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    def _check_guidance(self, cond: Conditioning) -> None:
        super()._check_guidance(cond)
        if self.is_distilled and cond.cfg_scale != 1.0:
            raise DirectAlignError(
                f"cfg_scale {cond.cfg_scale}: this FLUX.2 klein is step-distilled and takes no "
                "guidance: set cfg_scale: 1, or give a base model"
            )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 1/n), shifted by the numbers of tokens and of steps."""
        _, h, w = self.latent_shape(height, width)
        exponent = compute_empirical_mu(h * w, num_inference_steps)
        return noise_schedule.euler_grid(self.scheduler, num_inference_steps, exponent)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(4c, h, w) in blocks of 2x2 latents, which must fill both sides."""
        channels = 4 * self.vae.config["latent_channels"]
        return channels, *vae.grid(height, width, self.multiple, self.multiple)

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        return {
            "guidance_scale": rollout.cfg_scale,
            "max_sequence_length": MAX_SEQUENCE_LENGTH,
            "text_encoder_out_layers": TEXT_LAYERS,
        }
