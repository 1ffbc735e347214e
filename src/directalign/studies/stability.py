"""Is the aligned model still a diffusion model? Other samplers, step counts, guidance, seeds, and chains of image to image.

SRPO is trained on one rollout: eight Euler steps under one guidance. Here its model and the one it began from are sampled
in every other way on the same pairs, and what is gained and lost is compared.
"""

from __future__ import annotations

from ..config import RunConfig
from ..evaluation import image_metrics
from ..evaluation.eval_prompts import Pairs, fixed_pairs, measured_prompts, noise_of
from ..evaluation.generate import generate, image_size, trained_family
from ..evaluation.in_training import photographs
from ..interfaces import Model, Judge
from ..toyworld.judges import load_judge
from ..types import Images
from .running.experiment import run_arm, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
from .sampling_ways import SAMPLERS, chain, in_batches, scheduled
from .stability_story import draw, tell
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "stability"
TITLE = "The aligned model over samplers, step counts, guidance, seeds and long chains"
QUESTION = (
    "Alignment trains on one way of sampling, and the paper does not say whether the aligned model stays stable when it is sampled in another. "
    "Here SRPO's model and the one it began from are sampled by other solvers, in fewer and more steps, under other guidance, from many seeds, and in long "
    "chains of image to image, and the judges look at both."
)
ARM = Arm("srpo", "SRPO, anchored", "world_srpo")
SEED_BASE = 40_000
"""The first of the image seeds that all prompts share."""


@dataclass(frozen=True)
class Size:
    """What is sampled: pairs a condition, training seeds, and the conditions themselves."""

    count: int
    seeds: tuple[int, ...]
    samplers: tuple[str, ...]
    num_sampling_steps: tuple[int, ...]
    embedded_guidance: tuple[float, ...]
    cfg_scale: tuple[float, ...]
    image_seeds: int
    prompts: int
    rounds: int


FULL = Size(32, (0, 1, 2), tuple(SAMPLERS), (4, 8, 16, 25, 50), (1.0, 2.0, 3.5, 6.0), (1.0, 1.5, 2.0, 3.0), 8, 32, 10)
QUICK = Size(6, (0,), tuple(SAMPLERS), (2, 4), (1.0, 3.5), (1.0, 2.0), 2, 4, 2)


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Rows of kind `samplers`, `num_sampling_steps`, `embedded_guidance`, `cfg_scale`, `image_seeds` and `rounds`, for the base and for SRPO.

    `what` is the condition. Every training seed has pairs of its own, on which its model and the base are both sampled.
    """
    size, (arm,) = (QUICK if quick else FULL), sized([ARM], quick)
    found: list[Row] = []
    for seed in size.seeds:
        run, folder = settings_of(arm, seed, recipes), run_arm(arm, seed, out, recipes)
        for name, title, trained in (("base", "base model", None), (arm.name, arm.title, folder)):
            rows = piece(out, f"{name}-seed{seed}", run, lambda run=run, trained=trained, seed=seed: Subject.of(run, trained, seed, size).rows())
            found += [{"study": NAME, "arm": name, "title": title, "seed": seed, **row} for row in rows]
    return found


@dataclass(frozen=True)
class Subject:
    """A model and the pairs that it is sampled on."""

    family: Model
    judge: Judge
    run: RunConfig
    pairs: Pairs
    seed: int
    size: Size

    @classmethod
    def of(cls, run: RunConfig, trained: Path | None, seed: int, size: Size) -> Subject:
        """The model of a finished run, or for None the one that it began from; the `seed`-th stretch of the fixed pairs."""
        every = fixed_pairs(measured_prompts(run.data), size.count * (seed + 1))
        return cls(trained_family(run, trained), load_judge(), run, Pairs(every.prompts[-size.count :], every.seeds[-size.count :]), seed, size)

    def rows(self) -> Iterator[Row]:
        """Every condition's row."""
        for name in self.size.samplers:
            yield {"kind": "samplers", "what": name, **self.judged(self.by_sampler(name), self.pairs)}
        for key in ("num_sampling_steps", "embedded_guidance", "cfg_scale"):
            for value in getattr(self.size, key):
                yield {"kind": key, "what": value, **self.judged(self.by_rollout(self.pairs, **{key: value}), self.pairs)}
        for number in range(self.size.image_seeds):
            pairs = Pairs(self.pairs.prompts[: self.size.prompts], (SEED_BASE + number,) * self.size.prompts)
            yield {"kind": "image_seeds", "what": number, **self.judged(self.by_rollout(pairs), pairs)}
        for number, images in enumerate(self.by_rounds()):
            yield {"kind": "rounds", "what": number, **self.judged(images, self.pairs)}

    # --- images -------------------------------------------------------------------------------------------------------

    def by_rollout(self, pairs: Pairs, **changed: Any) -> Images:
        """The recipe's rollout with some settings changed."""
        return generate(self.family, pairs.prompts, pairs.seeds, self.run.rollout.model_copy(update=changed), self.run.evaluate.batch_size)

    def by_sampler(self, name: str) -> Images:
        """The recipe's number of steps by one of diffusers' schedulers."""
        rollout, device = self.run.rollout, next(self.family.denoiser.parameters()).device
        noise = noise_of(self.pairs.seeds, self.family.latent_shape(*image_size(self.family, rollout))).to(device)

        def make(first: int, last: int) -> Images:
            cond = self.family.encode_prompt(self.pairs.prompts[first:last]).guided(rollout.embedded_guidance, rollout.cfg_scale)
            x0 = scheduled(self.family, cond, noise[first:last], SAMPLERS[name](rollout.num_sampling_steps))
            return self.family.decode(x0).float().clamp(0, 1)

        return in_batches(make, len(self.pairs), self.run.evaluate.batch_size)

    def by_rounds(self) -> Iterator[Images]:
        """The recipe's images, then the same after each round of a chain."""
        rollout, device = self.run.rollout, next(self.family.denoiser.parameters()).device
        images = self.by_rollout(self.pairs)
        yield images
        cond = self.family.encode_prompt(self.pairs.prompts).guided(rollout.embedded_guidance, rollout.cfg_scale)
        for after in chain(self.family, cond, images.to(device), self.seed, self.size.rounds):
            yield after.cpu()

    # --- what is seen -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def judged(self, images: Images, pairs: Pairs) -> Row:
        """Photo rate and content by the judges, drift from true photographs of the same captions, and what drifts."""
        judged = self.judge(images, pairs.prompts)
        rates = {name: float(judged[name].mean()) for name in ("photo_rate", "content")}
        means = {name: float(values.double().mean()) for name, values in image_metrics.statistics(images).items()}
        return {**rates, "color_drift": image_metrics.color_drift(images, photographs(pairs)), **means, "images": len(images)}
