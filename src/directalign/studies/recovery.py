"""How exact Direct-Align's image is: its error beside that of a one-step guess, by noise level and jump, on both paths.

Nothing is trained. The embedded models sample clean latents, noise is put in at one level after another, and what one
network call makes of it is compared with what was there: in latents, in pixels, by the reward and by the judge.
"""

from __future__ import annotations

from ..config import SRPOConfig, RunConfig
from ..config.load import load_run
from ..diffusion.rng import FRESH_NOISE, draw_noise, generator_for
from ..diffusion.sampling import rollout_sigmas, sample
from ..evaluation.eval_prompts import fixed_pairs, measured_prompts, noise_of
from ..evaluation.generate import image_size
from ..models import load_model
from ..rewards import load_reward
from ..toyworld.judges import load_judge
from .recovery_errors import Bench
from .recovery_story import draw, tell
from .running.pieces import piece
from .running.records import Row
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import torch


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "recovery"
TITLE = "How exact the recovered image is, by noise level and jump"
QUESTION = (
    "The paper's case for Direct-Align is that one network call gives a good image at every noise level, because the noise is known. "
    "The closed form says by how much: the error of the recovered image over that of a one-step guess is a number that depends on the two levels alone. "
    "Here both errors are measured on the embedded FLUX (flow) and Stable Diffusion (vp; epsilon and v), in latents and in pixels, with the noise that the "
    "image was sampled from and with fresh noise. And the reward and the judge look at both images: from which level on do they no longer see the picture?"
)
MODELS = {"flux": ("FLUX (flow, velocity)", "world_srpo"), "sd": ("SD (vp, epsilon)", "world_sd"), "sd_v": ("SD (vp, v)", "world_sd_v")}


@dataclass(frozen=True)
class Size:
    """What is measured: levels, jumps, seeds of prompts and noise, and images per seed."""

    sigmas: tuple[float, ...]
    jumps: tuple[float, ...]
    seeds: tuple[int, ...]
    count: int


FULL = Size((0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.94, 0.97), (0.005, 0.02, 0.1), (0, 1, 2), 24)
QUICK = Size((0.3, 0.9), (0.02, 0.1), (0,), 6)


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Rows of the clean images, of x0_hat and of `recovered`, one per model, seed, noise, level and jump (see recovery_errors)."""
    size = QUICK if quick else FULL
    found: list[Row] = []
    for model, (title, recipe) in MODELS.items():
        run = load_run(recipes / f"{recipe}.yaml")
        for seed in size.seeds:
            named = {"study": NAME, "arm": model, "title": title, "seed": seed}
            found += [{**named, **row} for row in piece(out, f"{model}-seed{seed}", run, lambda run=run, seed=seed: errors(run, seed, size))]
    return found


@torch.no_grad()
def errors(run: RunConfig, seed: int, size: Size) -> list[Row]:
    """All rows of one model and seed; `noise` says whether the injected noise is the rollout's own."""
    bench = bench_of(run, seed, size.count)
    fresh = draw_noise(bench.x0.shape, generator_for(seed, FRESH_NOISE), bench.x0.device)
    rows = [{"image": "clean", **bench.clean()}]
    for name, noise in (("rollout", bench.noise), ("fresh", fresh)):
        rows += [{"noise": name, **row} for sigma in size.sigmas for row in bench.errors(noise, sigma, size.jumps)]
    return rows


def bench_of(run: RunConfig, seed: int, count: int) -> Bench:
    """`count` clean latents of the recipe's base model by the recipe's rollout, other prompts and other noise for every seed."""
    family = load_model(run.model, "cuda" if torch.cuda.is_available() else "cpu")
    device = next(family.denoiser.parameters()).device
    prompts, seeds = _pairs_of(run, seed, count)
    cond = family.encode_prompt(prompts)
    height, width = image_size(family, run.rollout)
    noise = noise_of(seeds, family.latent_shape(height, width)).to(device)
    rollout = cond.guided(run.rollout.embedded_guidance, run.rollout.cfg_scale)
    x0 = sample(family, rollout, noise, rollout_sigmas(family, run.rollout, height, width))
    assert isinstance(run.method, SRPOConfig), run.method.name
    trained = cond.guided(run.method.embedded_guidance, run.method.cfg_scale)
    return Bench(family, load_reward(run.reward, device), load_judge(), trained, x0, noise)


def _pairs_of(run: RunConfig, seed: int, count: int) -> tuple[Sequence[str], Sequence[int]]:
    """The pairs of one seed: the `seed`-th stretch of `count` of the fixed ones."""
    pairs = fixed_pairs(measured_prompts(run.data), count * (seed + 1))
    return pairs.prompts[-count:], pairs.seeds[-count:]
