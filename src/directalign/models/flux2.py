"""FLUX.2, klein and dev: rectified flow on blocks of 2x2 latents, beside three layers of a language
model.

Prompts are padded to 512 tokens, all of which the network sees. The shift depends on the number of
steps too. klein reads prompts with a Qwen3 and is guided by two passes; a step-distilled one
(`is_distilled` in its model_index.json) takes no guidance. dev reads them with a Mistral under a
system message and takes its guidance as an input; its pipeline has no second pass. Left out:
reference images and the rewriting of prompts.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor
from transformers import Mistral3ForConditionalGeneration

from .. import config
from ..types import Conditioning, DirectAlignError, Latents, PerSample
from . import noise_schedule
from .common import JOINT_ATTENTION, DiffusersModel, image_places, parts_of, text_places
from .vae import BlockLatents


class Flux2(BlockLatents, DiffusersModel):
    """Base of both."""

    text_layers: tuple[int, ...]
    """Hidden states of the text encoder that a token is made of, as in the pipeline's call."""
    max_sequence_length = 512  # with the chat template
    takes_guidance: bool
    """Whether guidance is an input of the network."""
    lora_targets = (
        *JOINT_ATTENTION,
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        "attn.to_qkv_mlp_proj",
    )

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super().check(folder, parts)
        if (found := parts["transformer"].config["guidance_embeds"]) != cls.takes_guidance:
            raise DirectAlignError(
                f"{folder / 'transformer'}: guidance_embeds is {'on' if found else 'off'}, which "
                f"{cls.title} does not use: give a {cls.title} in model.path"
            )
        layers = parts["text_encoder"].config.get_text_config().num_hidden_layers
        if layers < max(cls.text_layers):
            raise DirectAlignError(
                f"{folder / 'text_encoder'}: has {layers} layers, prompts are read from layers "
                f"{cls.text_layers}: give a {cls.title} in model.path"
            )

    def _texts(self, prompts: list[str]) -> list[str]:
        """Each prompt in its chat template."""
        raise NotImplementedError

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, 512, d): the three layers side by side."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        texts = self._texts(prompts)
        tokens = self._tokens(texts, self.max_sequence_length, add_special_tokens=False)
        states = text_encoder.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return {"sequence": torch.cat([states[layer] for layer in self.text_layers], dim=-1)}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        h, w = x_t.shape[2:]
        sequence, guidance = cond.tensors["sequence"], cond.embedded_guidance
        if guidance is not None:
            guidance = torch.full((len(x_t),), float(guidance), device=self.device)
        tokens = self._network(
            hidden_states=x_t.flatten(2).transpose(1, 2).to(self.dtype),
            timestep=sigma.float(),
            encoder_hidden_states=sequence,
            txt_ids=text_places(sequence.shape[1], self.device),
            img_ids=image_places(h, w, self.device),
            guidance=guidance,
        )
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 1/n), shifted by the numbers of tokens and of steps."""
        _, h, w = self.latent_shape(height, width)
        exponent = compute_empirical_mu(h * w, num_inference_steps)
        return noise_schedule.euler_grid(self.scheduler, num_inference_steps, exponent)

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        return {
            **super().call_arguments(rollout),
            "guidance_scale": rollout.embedded_guidance or rollout.cfg_scale,
            "text_encoder_out_layers": self.text_layers,
        }


class Flux2Klein(Flux2):
    """A FLUX.2 klein checkpoint."""

    title = "FLUX.2 klein"
    pipeline = "Flux2KleinPipeline"
    parts = parts_of(Flux2Transformer2DModel, vae=AutoencoderKLFlux2)
    lora_layout = "flux2_klein"
    components = "black-forest-labs/FLUX.2-klein-base-4B"
    usual_cfg = 4.0
    published = "flux_2_klein_4b"
    text_layers = (9, 18, 27)
    takes_guidance = False

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        self.is_distilled = bool(self.index.get("is_distilled", False))

    def _texts(self, prompts: list[str]) -> list[str]:
        return self._chat(prompts, thinking=False)


class Flux2Dev(Flux2):
    """A FLUX.2 dev checkpoint, guidance-distilled: `cfg_scale` is 1."""

    title = "FLUX.2 dev"
    pipeline = "Flux2Pipeline"
    parts = parts_of(
        Flux2Transformer2DModel, (Mistral3ForConditionalGeneration,), vae=AutoencoderKLFlux2
    )
    lora_layout = "flux2"
    components = "black-forest-labs/FLUX.2-dev"
    published = "flux_2_dev"
    text_layers = (10, 20, 30)
    takes_guidance = embeds_guidance = is_distilled = True

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        (reader,) = self.tokenizers  # of a pipeline in memory: a processor, with its tokenizer
        self.template = reader.apply_chat_template
        self.tokenizers: list[Any] = [getattr(reader, "tokenizer", reader)]

    def _texts(self, prompts: list[str]) -> list[str]:
        turns = [
            (("system", SYSTEM_MESSAGE), ("user", prompt.replace("[IMG]", "")))
            for prompt in prompts
        ]
        return [
            self.template(
                [
                    {"role": role, "content": [{"type": "text", "text": text}]}
                    for role, text in each
                ],
                add_generation_prompt=False,
                tokenize=False,
            )
            for each in turns
        ]

    def _check_guidance(self, cond: Conditioning) -> None:
        if cond.embedded_guidance is None:
            raise DirectAlignError(
                "FLUX.2 dev takes its guidance as an input: give rollout.embedded_guidance and "
                "method.embedded_guidance (4 is usual)"
            )
        self._check_passes(cond)
