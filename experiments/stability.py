"""The aligned model under other samplers, step counts, guidance, seeds and image-to-image chains.

SRPO's model and its base model are sampled in other ways than the eight Euler steps of training, on
the same pairs, and judged. Every training seed has pairs of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from directalign.config import RunConfig
from directalign.diffusion.recovery import inject
from directalign.diffusion.rng import FRESH_NOISE, draw_noise, generator_for
from directalign.diffusion.sampling import FLOW_SOLVER, SOLVERS, sample, sample_scheduled
from directalign.evaluation import image_metrics
from directalign.evaluation.eval_prompts import Pairs, fixed_pairs, measured_prompts, seed_noise
from directalign.evaluation.generate import generate, image_size, load_run_model
from directalign.evaluation.in_training import photographs
from directalign.evaluation.run_weights import find_weights
from directalign.interfaces import Judge, Model
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS
from directalign.types import Conditioning, Images

from .plots import Panel, curves, line
from .rows import Row, Rows, mean_interval, mean_of, over
from .runner import Arm, piece, run_arm, settings_of, sized
from .tables import QUALITY, Table, number, with_interval

ARM = Arm("srpo", "SRPO, anchored", "world_srpo")
BASE, ALIGNED = "base", "srpo"
SEED_BASE = 40_000
"""The first of the image seeds that all prompts share."""
STRENGTH, CHAIN_STEPS = 0.4, 4
"""Noise level to which every round of a chain returns, and its sampling steps."""
KINDS = {
    "samplers": "sampler",
    "num_inference_steps": "steps",
    "embedded_guidance": "embedded guidance",
    "cfg_scale": "cfg_scale",
    "rounds": "img2img rounds",
}
SHOWN_ROUNDS = (0, 1, 5, 10)

SAMPLERS = {
    "Euler": FlowMatchEulerDiscreteScheduler,
    "Heun": FlowMatchHeunDiscreteScheduler,
    "DPM-Solver++ 2M": partial(SOLVERS["dpm_solver"], **FLOW_SOLVER),
    "UniPC": partial(SOLVERS["unipc"], **FLOW_SOLVER),
}
"""diffusers' schedulers. Heun takes two network calls a step but the last."""


def scheduler_of(name: str, num_inference_steps: int) -> Any:
    """A scheduler with its timesteps set; Euler on the levels of `rollout.sample`."""
    scheduler = SAMPLERS[name]()
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
    steps = {"sigmas": sigmas} if name == "Euler" else {"num_inference_steps": num_inference_steps}
    scheduler.set_timesteps(**steps)
    return scheduler


@dataclass(frozen=True)
class Size:
    """Pairs per condition, training seeds, and the conditions."""

    count: int
    seeds: tuple[int, ...]
    num_inference_steps: tuple[int, ...]
    embedded_guidance: tuple[float, ...]
    cfg_scale: tuple[float, ...]
    image_seeds: int
    prompts: int
    rounds: int


STEPS, GUIDANCE, CFG = (4, 8, 16, 25, 50), (1.0, 2.0, 3.5, 6.0), (1.0, 1.5, 2.0, 3.0)
FULL = Size(32, (0, 1, 2), STEPS, GUIDANCE, CFG, 8, 32, 10)
QUICK = Size(6, (0,), (2, 4), (1.0, 3.5), (1.0, 2.0), 2, 4, 2)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `image_seeds` and of `KINDS`, for base and SRPO; `what` is the condition."""
    size, (arm,) = (QUICK if quick else FULL), sized([ARM], quick)
    found: list[Row] = []
    for seed in size.seeds:
        run, folder = settings_of(arm, seed), run_arm(arm, seed, out)
        for name, title, trained in ((BASE, "base model", None), (ALIGNED, arm.title, folder)):
            named = {"study": "stability", "arm": name, "title": title, "seed": seed}
            make = partial(sampled, run, trained, seed, size)
            found += [{**named, **row} for row in piece(out, f"{name}-seed{seed}", run, make)]
    return found


def sampled(run: RunConfig, trained: Path | None, seed: int, size: Size) -> Iterator[Row]:
    """Rows of a finished run, or for None of its base, on the `seed`-th stretch of the pairs."""
    every = fixed_pairs(measured_prompts(run), size.count * (seed + 1))
    pairs = Pairs(every.prompts[-size.count :], every.seeds[-size.count :])
    weights = find_weights(run, trained) if trained is not None else None
    judge = load_judge(WORLDS[run.evaluate.judge])
    return Sampler(load_run_model(run, weights), judge, run, pairs, seed, size).rows()


@dataclass(frozen=True)
class Sampler:
    """A model and the pairs on which it is sampled."""

    model: Model
    judge: Judge
    run: RunConfig
    pairs: Pairs
    seed: int
    size: Size

    def rows(self) -> Iterator[Row]:
        """One row per condition."""
        for name in SAMPLERS:
            judged = self.judged(self.by_sampler(name), self.pairs)
            yield {"kind": "samplers", "what": name, **judged}
        for key in ("num_inference_steps", "embedded_guidance", "cfg_scale"):
            for value in getattr(self.size, key):
                images = self.by_rollout(self.pairs, **{key: value})
                yield {"kind": key, "what": value, **self.judged(images, self.pairs)}
        prompts = self.pairs.prompts[: self.size.prompts]
        for place in range(self.size.image_seeds):
            pairs = Pairs(prompts, (SEED_BASE + place,) * self.size.prompts)
            images = self.by_rollout(pairs)
            yield {"kind": "image_seeds", "what": place, **self.judged(images, pairs)}
        images, device = self.by_rollout(self.pairs), self.device
        given = (self.cond(0, None), images.to(device), self.seed, self.size.rounds)
        chained = chain(self.model, *given)
        for place, after in enumerate([images, *(each.cpu() for each in chained)]):
            yield {"kind": "rounds", "what": place, **self.judged(after, self.pairs)}

    @property
    def device(self) -> torch.device:
        return next(self.model.denoiser.parameters()).device

    def cond(self, first: int, last: int | None) -> Conditioning:
        """Some of the prompts under the recipe's guidance."""
        rollout, prompts = self.run.rollout, self.pairs.prompts[first:last]
        guided = self.model.encode_prompt(prompts)
        return guided.guided(rollout.embedded_guidance, rollout.cfg_scale)

    def by_rollout(self, pairs: Pairs, **changed: Any) -> Images:
        """Images by the recipe's rollout with some settings changed."""
        rollout, size = self.run.rollout.model_copy(update=changed), self.run.evaluate.batch_size
        return generate(self.model, pairs.prompts, pairs.seeds, rollout, size)

    def by_sampler(self, name: str) -> Images:
        """Images by one of diffusers' schedulers, in the recipe's number of steps."""
        rollout, size = self.run.rollout, self.run.evaluate.batch_size
        shape = self.model.latent_shape(*image_size(self.model, rollout))
        noise, images = seed_noise(self.pairs.seeds, shape).to(self.device), []
        for first in range(0, len(self.pairs), size):
            scheduler, last = scheduler_of(name, rollout.num_inference_steps), first + size
            x0 = sample_scheduled(self.model, self.cond(first, last), noise[first:last], scheduler)
            images.append(self.model.decode(x0).float().clamp(0, 1).cpu())
        return torch.cat(images)

    @torch.no_grad()
    def judged(self, images: Images, pairs: Pairs) -> Row:
        """Photo rate, content, colour drift from photographs of the captions, statistics."""
        judged = self.judge(images, pairs.prompts)
        names = ("photo_rate", "content", "photo_and_content")
        rates = {name: float(judged[name].mean()) for name in names}
        numbers = image_metrics.statistics(images)
        means = {name: float(values.double().mean()) for name, values in numbers.items()}
        color_drift = image_metrics.color_drift(images, photographs(pairs))
        return {**rates, "color_drift": color_drift, **means, "images": len(images)}


@torch.no_grad()
def chain(
    model: Model, cond: Conditioning, images: Images, seed: int, rounds: int
) -> Iterator[Images]:
    """Images after each round of: encode, noise to `STRENGTH` with new noise, denoise, decode."""
    sigmas = torch.linspace(STRENGTH, 0, CHAIN_STEPS + 1, dtype=torch.float64)
    for place in range(rounds):
        x0 = model.encode_image(images)
        noise = draw_noise(x0.shape, generator_for(seed, FRESH_NOISE, place), x0.device)
        x_t = inject(model.path, x0, noise, sigmas[:1].expand(len(x0)).to(x0.device)).x_t
        images = model.decode(sample(model, cond, x_t, sigmas)).float().clamp(0, 1)
        yield images


# --- tables and figures ---------------------------------------------------------------------------


def by_seed(rows: Rows, arm: str, kind: str, what: object) -> list[Row]:
    """One row per training seed, in their order."""
    return sorted(rows.where(kind=kind, what=what, arm=arm), key=lambda row: row["seed"])


def conditions(rows: Rows, kind: str) -> list[Any]:
    """The conditions of one kind, in the order of sampling."""
    return list(dict.fromkeys(row["what"] for row in rows.where(kind=kind)))


def spread(rows: Rows, arm: str, seed: int) -> tuple[float, float]:
    """Standard deviation of the photo rate over image seeds, and that of chance, √(p(1 − p)/n)."""
    found = rows.where(kind="image_seeds", arm=arm, seed=seed)
    rates = [row["photo_rate"] for row in found]
    mean = statistics.fmean(rates)
    return statistics.stdev(rates), (mean * (1 - mean) / found[0]["images"]) ** 0.5


def tables(rows: Rows) -> dict[str, Table]:
    lines, seeds = [], []
    for kind, name in KINDS.items():
        for what in conditions(rows, kind):
            if kind == "rounds" and what not in SHOWN_ROUNDS:
                continue
            pair = [by_seed(rows, arm, kind, what) for arm in (BASE, ALIGNED)]
            cells = []
            for key in QUALITY:
                digits, percent = (3, False) if key == "color_drift" else (0, True)
                cells += [with_interval(over(found, key), digits, percent) for found in pair]
            base, aligned = ([row["photo_rate"] for row in found] for found in pair)
            gains = [after - before for before, after in zip(base, aligned, strict=True)]
            gain = with_interval(mean_interval(gains), 2)
            lines.append([name, what if isinstance(what, str) else f"{what:g}", *cells, gain])
    for arm, title in ((BASE, "base model"), (ALIGNED, "aligned model")):
        found = rows.where(kind="image_seeds", arm=arm)
        spreads = [spread(rows, arm, seed) for seed in rows.seeds(arm)]
        measured, chance = (mean_interval(values) for values in zip(*spreads, strict=True))
        rates = [row["photo_rate"] for row in found]
        by_run = [[row["photo_rate"] for row in found if row["seed"] == s] for s in found.seeds()]
        mean = with_interval(mean_interval([statistics.fmean(each) for each in by_run]), 0, True)
        count = str(len(conditions(found, "image_seeds")))
        spans = [with_interval(measured, 3), number(chance["value"], 3)]
        extremes = f"{number(100 * min(rates), 0)} % to {number(100 * max(rates), 0)} %"
        seeds.append([title, count, mean, *spans, extremes])
    sides = [f"{title}, {side}" for title in QUALITY.values() for side in ("base", "aligned")]
    spans = ["spread over image seeds", "spread of chance", "from, to"]
    return {
        "conditions": Table(["varied", "value", *sides, "gain in photo rate"], lines),
        "image_seeds": Table(["model", "image seeds", "photo rate", *spans], seeds),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    kinds, panels = [kind for kind in KINDS if kind != "samplers"], []
    for key, title in QUALITY.items():
        for kind in kinds:
            lines = []
            for arm in (BASE, ALIGNED):
                groups = [(what, by_seed(rows, arm, kind, what)) for what in conditions(rows, kind)]
                points = [(what, mean_of(key, [row[key] for row in each])) for what, each in groups]
                lines.append(line(arm, points))
            panel = Panel(title, KINDS[kind], "", lines, named=kind == kinds[-1])
            if key != "color_drift":
                panel = replace(panel, percent=True, span_y=(-0.03, 1.03))
            panels.append(panel)
    file, title = folder / "stability.png", "The aligned model in ways it was not trained for"
    note = "Means and 95 % intervals over training seeds."
    return [curves(file, title, panels, note, columns=len(kinds))]
