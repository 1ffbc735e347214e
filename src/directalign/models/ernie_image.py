"""ERNIE-Image: rectified flow on blocks of 2x2 latents beside all tokens of a prompt, from the last
layer but one of a Mistral.

Latents are those of FLUX.2, with the epsilon of the pipeline's call. Guidance takes two passes.
Left out: the model that rewrites prompts (`use_pe`).
"""

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, ErnieImageTransformer2DModel
from torch import Tensor

from .. import config
from ..types import Conditioning, Latents, PerSample
from .common import DiffusersModel, parts_of
from .text_encoder import joined
from .vae import BlockLatents

UNLIMITED = 1 << 20
"""Lengths from here on stand for none in a tokenizer's files."""


class ErnieImage(BlockLatents, DiffusersModel):
    """An ERNIE-Image checkpoint; a prompt's prediction does not depend on others in its batch."""

    title = "ERNIE-Image"
    masks_attention = True
    pipeline = "ErnieImagePipeline"
    parts = parts_of(ErnieImageTransformer2DModel, vae=AutoencoderKLFlux2)
    components = "baidu/ERNIE-Image"
    usual_cfg = 4.0
    published = "ernie_image"
    epsilon = 1e-5
    lora_targets = (
        *("self_attention.to_q", "self_attention.to_k", "self_attention.to_v"),
        *("self_attention.to_out.0", "mlp.gate_proj", "mlp.up_proj", "mlp.linear_fc2"),
    )

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, tokens, d) and its boolean `mask` (b, tokens); prompts are read one by
        one, without padding."""
        (tokenizer,), text_encoder = self.tokenizers, self.prompts.modules["text_encoder"]
        length, rows = tokenizer.model_max_length, list[Tensor]()
        for prompt in prompts:
            limit = {} if length > UNLIMITED else {"max_length": length, "truncation": True}
            ids = tokenizer(prompt, **limit)["input_ids"] or [tokenizer.bos_token_id or 0]
            states = text_encoder(
                input_ids=torch.tensor([ids], device=self.device), output_hidden_states=True
            ).hidden_states
            rows.append(states[-2])
        return joined(rows)

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        return self._network(
            hidden_states=x_t.to(self.dtype),
            timestep=(self.scheduler.config["num_train_timesteps"] * sigma).float(),
            text_bth=cond.tensors["sequence"],
            text_lens=cond.tensors["mask"].sum(1),
        )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 0), under the scheduler's fixed shift."""
        grid = torch.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
        self.scheduler.set_timesteps(sigmas=grid)
        return self.scheduler.sigmas.double()

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        return {"guidance_scale": rollout.cfg_scale, "use_pe": False}
