"""A LoRA with which the FLUX samples in four steps, as with a Lightning or Turbo LoRA.

Progressive distillation (arXiv 2202.00512) in one stage, on the student's own rollouts: one call at
a level of the few-step grid has to go as far as `SUBSTEPS` Euler steps of the base model from
there. That target is a function of its input, not a mean over images, so that nothing blurs.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false
# (diffusers annotates too narrowly)
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from directalign.models.flux import Flux

from .denoisers import _unpack, _velocity
from .session import fit
from .spec import Spec
from .tokenizers import clip_tokenizer, t5_tokenizer

NAME, STEPS, SUBSTEPS, RANK = "flux_turbo", 4, 4, 8


def train_few_step(base: nn.ModuleDict, folder: Path, spec: Spec) -> None:
    """Train adapters on the transformer of `base`; they are written to `folder/flux_turbo`.

    Half of the captions name a style. The embedded guidance keeps carrying no meaning.
    """
    budget, drawn = spec.few_step, spec.world.scenes
    tokenizers = clip_tokenizer(spec), t5_tokenizer(spec)
    network: Any = base.requires_grad_(False)["transformer"]
    torch.manual_seed(25)
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[*Flux.lora_targets]))
    words = [f"{word}. " for pair in drawn.STYLE_WORDS.values() for word in pair]
    words += [""] * len(words)
    shape = budget.batch, spec.latent_channels, spec.latent_side, spec.latent_side

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        texts = drawn.draw_scenes(budget.batch, generator).captions()
        before = torch.randint(len(words), (budget.batch,), generator=generator).tolist()
        captions = [words[i] + text for i, text in zip(before, texts, strict=True)]
        guidance = 1 + 3 * torch.rand(budget.batch, generator=generator)

        def velocity(x_t: Tensor, sigma: float) -> Tensor:
            levels = torch.full((budget.batch,), sigma)
            return _unpack(_velocity(base, tokenizers, x_t, levels, guidance, captions), x_t.shape)

        start = torch.randn(shape, generator=generator)
        index = int(torch.randint(STEPS, (), generator=generator))
        with torch.no_grad():
            for earlier in range(index):
                start = start - velocity(start, 1 - earlier / STEPS) / STEPS
            network.disable_adapters()
            end, sigma, length = start, 1 - index / STEPS, 1 / (STEPS * SUBSTEPS)
            for substep in range(SUBSTEPS):
                end = end - length * velocity(end, sigma - substep * length)
            network.enable_adapters()
        return (velocity(start, sigma) - (start - end) * STEPS).square().mean()

    fit(NAME, base, loss_of, budget, folder)
    layers = get_peft_model_state_dict(network)
    FluxPipeline.save_lora_weights(folder / NAME, transformer_lora_layers=layers)
