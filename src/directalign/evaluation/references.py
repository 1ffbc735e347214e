"""What a model is compared with beside its base: the base asked in words, and true photographs.

Asked images are generated with a phrase before the prompt, and judged and scored against the
unchanged prompt. Photographs exist in the toy world only; through the autoencoder they have all the
detail that a model of this world can have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..diffusion.rng import generator_for
from ..interfaces import Model
from ..rewards.soft_prompts import is_tokens_file
from ..toyworld.judges import plain_caption
from ..toyworld.scenes import render, scenes_of
from ..types import Images
from .eval_prompts import Pairs

Kind = Literal["asked", "photographs", "autoencoded"]
LABELS = {"photographs": "photographs", "autoencoded": "photographs through the autoencoder"}


@dataclass(frozen=True)
class Reference:
    """One row; `phrase` is that of a base model that is asked."""

    kind: Kind
    phrase: str = ""

    @property
    def label(self) -> str:
        return LABELS.get(self.kind) or f"asked: {self.phrase}."


def references(phrases: Sequence[str], is_world: bool) -> list[Reference]:
    """The base asked with each phrase that is no file of learned tokens; photographs if `is_world`.

    `is_world`: the prompts are captions of the toy world.
    """
    found = [
        Reference("asked", each) for each in dict.fromkeys(phrases) if not is_tokens_file(each)
    ]
    return found + ([Reference("photographs"), Reference("autoencoded")] if is_world else [])


def photographs(pairs: Pairs) -> Images:
    """The renderer's photographs (n, 3, H, W) of the pairs' captions, one fixed draw each."""
    drawn = [
        render(scenes_of([plain_caption(prompt)]), generator_for(seed))
        for prompt, seed in zip(pairs.prompts, pairs.seeds, strict=True)
    ]
    return torch.cat(drawn)


@torch.no_grad()
def through_autoencoder(model: Model, images: Images, batch_size: int) -> Images:
    """Images (n, 3, H, W) in [0, 1] encoded and decoded, on the CPU."""
    device = next(model.denoiser.parameters()).device
    decoded = [
        model.decode(model.encode_image(part.to(device))).clamp(0, 1).float().cpu()
        for part in images.split(batch_size)
    ]
    return torch.cat(decoded)
