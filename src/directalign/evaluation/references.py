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
from ..toyworld.worlds import WORLDS
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

    `is_world`: the prompts are captions of a toy world.
    """
    found = [
        Reference("asked", each) for each in dict.fromkeys(phrases) if not is_tokens_file(each)
    ]
    return found + ([Reference("photographs"), Reference("autoencoded")] if is_world else [])


def photographs(pairs: Pairs) -> Images:
    """A toy world's photographs (n, 3, H, W) of the pairs' captions, one fixed draw each.

    Raises: ValueError for prompts that are not all captions of one world.
    """
    captions = [plain_caption(prompt) for prompt in pairs.prompts]
    worlds = [each.scenes for each in WORLDS.values()]
    fitting = [scenes for scenes in worlds if set(captions) <= set(scenes.all_captions())]
    if not fitting:
        raise ValueError(f"not all of {captions[:3]} ... are captions of one toy world")
    drawn = fitting[0]
    images = [
        drawn.render(drawn.scenes_of([caption]), generator_for(seed))
        for caption, seed in zip(captions, pairs.seeds, strict=True)
    ]
    return torch.cat(images)


@torch.no_grad()
def through_autoencoder(model: Model, images: Images, batch_size: int) -> Images:
    """Images (n, 3, H, W) in [0, 1] encoded and decoded, on the CPU."""
    device = next(model.denoiser.parameters()).device
    decoded = [
        model.decode(model.encode_image(part.to(device))).clamp(0, 1).float().cpu()
        for part in images.split(batch_size)
    ]
    return torch.cat(decoded)
