"""How exact Direct-Align's image is, by noise level and jump, beside a one-step guess x0_hat.

The ratio of the two errors depends on the two levels alone. It is measured on FLUX (flow) and
Stable Diffusion (vp; epsilon and v), with the noise that the image was sampled from (`rollout`) and
with fresh noise, by the step written out in float32; recovered images come from the closed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from directalign.config import RunConfig, SRPOConfig
from directalign.config.load import load_run
from directalign.diffusion.path import alpha, expand_like, to_noise, to_x0
from directalign.diffusion.recovery import inject, recover
from directalign.diffusion.rng import FRESH_NOISE, draw_noise, generator_for
from directalign.diffusion.sampling import rollout_sigmas, sample
from directalign.evaluation.eval_prompts import fixed_pairs, measured_prompts, seed_noise
from directalign.evaluation.generate import image_size
from directalign.evaluation.image_metrics import sharpness
from directalign.interfaces import Judge, Model, Reward
from directalign.metrics import STYLE
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.toyworld.judges import load_judge
from directalign.types import Conditioning, Images, Latents, Noised, PathName, PerSample

from .plots import Line, Panel, curves
from .rows import Row, Rows, mean_interval, over
from .runner import piece
from .tables import Column, Table, means, number

MODELS = {
    "flux": ("FLUX (flow, velocity)", "world_srpo"),
    "sd": ("SD (vp, epsilon)", "world_sd"),
    "sd_v": ("SD (vp, v)", "world_sd_v"),
}
HIGHEST = 0.99
"""No jump goes beyond this level: there is no signal left at 1 to recover."""
OTHER_PROMPTS = 3
"""Wrong captions under which each clean image is scored, for the score of chance."""
JUMP, HALF = 0.02, 0.5
"""The jump of the tables (the official span is 0.0214); the share below which a signal is lost."""
SHOWN_SIGMAS = (0.1, 0.5, 0.8, 0.9, 0.97)
SIGNALS = {
    "reward": "reward's score",
    "agreement": "reward's ranking",
    "content": "content",
    "style": "style",
    "sharpness": "sharpness",
}
DRAWN = ("agreement", "style", "sharpness")
OWN, FRESH = "rollout", "fresh"
GUESS, RECOVERED = "x0_hat", "recovered"


@dataclass(frozen=True)
class Size:
    """Levels, jumps, seeds of prompts and noise, and images per seed."""

    sigmas: tuple[float, ...]
    jumps: tuple[float, ...]
    seeds: tuple[int, ...]
    count: int


FULL = Size((0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.94, 0.97), (0.005, 0.02, 0.1), (0, 1, 2), 24)
QUICK = Size((0.3, 0.9), (0.02, 0.1), (0,), 2)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of clean images, x0_hat and `recovered`, by model, seed, noise, level, jump."""
    size, found = QUICK if quick else FULL, []
    for model, (title, recipe) in MODELS.items():
        run = load_run(recipe)
        for seed in size.seeds:
            named = {"study": "recovery", "arm": model, "title": title, "seed": seed}
            rows = piece(out, f"{model}-seed{seed}", run, partial(errors, run, seed, size))
            found += [{**named, **row} for row in rows]
    return found


@torch.no_grad()
def errors(run: RunConfig, seed: int, size: Size) -> list[Row]:
    """All rows of one model and seed; every seed has other prompts and noise."""
    assert isinstance(run.method, SRPOConfig), run.method.name
    model = load_model(run.model, "cuda" if torch.cuda.is_available() else "cpu")
    device = next(model.denoiser.parameters()).device
    pairs = fixed_pairs(measured_prompts(run), size.count * (seed + 1))
    cond = model.encode_prompt(pairs.prompts[-size.count :])
    height, width = image_size(model, run.rollout)
    own = seed_noise(pairs.seeds[-size.count :], model.latent_shape(height, width)).to(device)
    guided = cond.guided(run.rollout.embedded_guidance, run.rollout.cfg_scale)
    x0 = sample(model, guided, own, rollout_sigmas(model, run.rollout, height, width))
    trained = cond.guided(run.method.embedded_guidance, run.method.cfg_scale)
    bench = Bench(model, load_reward(run.reward, device), load_judge(), trained, x0)
    fresh = draw_noise(x0.shape, generator_for(seed, FRESH_NOISE), device)
    rows = [{"image": "clean", **bench.clean()}]
    for name, noise in ((OWN, own), (FRESH, fresh)):
        for sigma in size.sigmas:
            rows += [{"noise": name, **row} for row in bench.errors(noise, sigma, size.jumps)]
    return rows


def predicted_ratio(path: PathName, sigma_from: float, sigma_to: float) -> float:
    """|1 − sigma_to·alpha_from / (alpha_to·sigma_from)| (docs/method.md, section 1).

    On flow that is |sigma_from − sigma_to| / ((1 − sigma_to)·sigma_from).
    """
    level = torch.tensor([sigma_from, sigma_to], dtype=torch.float64)
    alpha_from, alpha_to = alpha(path, level).tolist()
    return abs(1 - sigma_to * alpha_from / (alpha_to * sigma_from))


def target_levels(sigma: float, jumps: Sequence[float]) -> list[float]:
    """Levels after jumps down and up from `sigma`; those outside [0, `HIGHEST`] are left out."""
    reached = [round(sigma + sign * jump, 6) for jump in jumps for sign in (-1, 1)]
    return [sigma_to for sigma_to in reached if 0 <= sigma_to <= HIGHEST]


def stepped(model: Model, noised: Noised, pred: Latents, sigma_to: PerSample) -> Latents:
    """Direct-Align's image by steps: step, subtract the noise, divide by alpha_to."""
    given = (model.path, model.prediction, pred, noised.x_t, noised.sigma)
    x0_hat, noise_hat = to_x0(*given), to_noise(*given)
    alpha_to, level = expand_like(alpha(model.path, sigma_to), pred), expand_like(sigma_to, pred)
    x_to = alpha_to * x0_hat + level * noise_hat
    return (x_to - level * noised.noise) / alpha_to


def rmse(values: Tensor, truth: Tensor) -> float:
    """Root mean square difference over everything."""
    return float((values - truth).double().square().mean().sqrt())


@dataclass(frozen=True)
class Bench:
    """Clean latents `x0` of `cond.prompts`, and the networks that measure what is made of them."""

    model: Model
    reward: Reward
    judge: Judge
    cond: Conditioning
    x0: Latents

    def clean(self) -> Row:
        """The numbers of the clean images, and `chance`: their mean score under other captions."""
        prompts, features = list(self.cond.prompts), self.reward.encode(self.truth)
        wrong = [prompts[by:] + prompts[:by] for by in range(1, OTHER_PROMPTS + 1)]
        chance = torch.stack([self.reward.score(features, each) for each in wrong]).mean()
        return {**self.seen(self.x0), "chance": float(chance)}

    def errors(self, noise: Latents, sigma: float, jumps: Sequence[float]) -> Iterator[Row]:
        """A row for x0_hat, then `recovered` at every target level; jumps down are positive."""
        model, b = self.model, len(self.x0)
        level = torch.full((b,), sigma, dtype=torch.float64)
        noised = inject(model.path, self.x0, noise, level)
        pred = model.predict(noised.x_t, level, self.cond)
        x0_hat = to_x0(model.path, model.prediction, pred, noised.x_t, level)
        yield {"sigma": sigma, "image": GUESS, **self.seen(x0_hat)}
        for sigma_to in target_levels(sigma, jumps):
            target = torch.full((b,), sigma_to, dtype=torch.float64)
            by_steps = stepped(model, noised, pred, target)
            recovered = recover(model.path, model.prediction, noised, pred, target).x0
            row = {"sigma": sigma, "jump": round(sigma - sigma_to, 6), "image": RECOVERED}
            row["ratio"] = rmse(by_steps, self.x0) / rmse(x0_hat, self.x0)
            row["predicted"] = predicted_ratio(model.path, sigma, sigma_to)
            yield {**row, **self.seen(recovered)}

    def seen(self, latents: Latents) -> Row:
        """Errors of latents and pixels, and what is left of the images.

        `reward`: mean score. `agreement`: correlation of scores over images with the clean images'
        scores. `content`: the judge's. `style`: share of images with the judge's style of the clean
        one. `sharpness`: gradient energy.
        """
        images = self.images(latents)
        scores, judged = self._scores(images), self.judge(images, self.cond.prompts)
        pair = torch.stack([scores, self._scores(self.truth)]).double()
        styles = [name for name in judged if name.startswith(STYLE)]
        same = [(judged[name] == self._judged[name]).float() for name in styles]
        return {
            "latents_rmse": rmse(latents, self.x0),
            "pixels_rmse": rmse(images, self.truth),
            "reward": float(scores.mean()),
            "agreement": float(torch.corrcoef(pair)[0, 1]),
            "content": float(judged["content"].mean()),
            "style": float(torch.stack(same).amin(0).mean()),
            "sharpness": float(sharpness(images).mean()),
        }

    def _scores(self, images: Images) -> PerSample:
        return self.reward.score(self.reward.encode(images), self.cond.prompts).cpu()

    @cached_property
    def truth(self) -> Images:
        """The clean images."""
        return self.images(self.x0)

    @cached_property
    def _judged(self) -> Mapping[str, PerSample]:
        return self.judge(self.truth, self.cond.prompts)

    def images(self, latents: Latents) -> Images:
        """Decoded and clamped to [0, 1]."""
        return self.model.decode(latents).float().clamp(0, 1)


# --- tables and figures ---------------------------------------------------------------------------


def select(rows: Rows, arm: str, image: str, noise: str, sigma: float, jump: float = JUMP) -> Rows:
    """Rows of one image at one level, one per seed; `jump` applies to recovered images."""
    jumps = {"jump": jump} if image == RECOVERED else {}
    return rows.where(arm=arm, image=image, noise=noise, sigma=sigma, **jumps)


def sigmas_of(rows: Rows, arm: str) -> list[float]:
    """The levels of one model, ascending."""
    return sorted({row["sigma"] for row in rows.where(arm=arm) if "sigma" in row})


def kept(rows: Rows, arm: str, image: str, noise: str, what: str) -> list[tuple[float, float]]:
    """(sigma, share of the clean images' value of a signal that is left), means over seeds.

    Of the reward's score: (score − chance) / (clean score − chance).
    """
    clean = rows.where(arm=arm, image="clean")

    def mean(found: Sequence[Row], key: str) -> float:
        return mean_interval([row[key] for row in found])["value"]

    zero = mean(clean, "chance") if what == "reward" else 0.0
    points = []
    for sigma in sigmas_of(rows, arm):
        if found := select(rows, arm, image, noise, sigma):
            points.append((sigma, (mean(found, what) - zero) / (mean(clean, what) - zero)))
    return points


def lost_from(points: Sequence[tuple[float, float]]) -> float | None:
    """The lowest level from which on less than half is left; None if the highest has half."""
    level = None
    for sigma, share in sorted(points, reverse=True):
        if share >= HALF:
            break
        level = sigma
    return level


def deviations(rows: Rows) -> list[tuple[float, Row]]:
    """(|measured / predicted ratio − 1|, row) of every recovered image, the largest first."""
    recovered = rows.where(image=RECOVERED)
    found = [(abs(row["ratio"] / row["predicted"] - 1), row) for row in recovered]
    return sorted(found, key=lambda pair: -pair[0])


def tables(rows: Rows) -> dict[str, Table]:
    formula, by_level, signals = [], [], []
    errors = [Column(key, key) for key in ("latents_rmse", "pixels_rmse")]
    ratios = [Column(key, key, 4, interval=False) for key in ("ratio", "predicted")]
    for arm, title in rows.arms.items():
        found = deviations(rows.where(arm=arm))
        (worst, where), median = found[0], found[len(found) // 2][0]
        place = f"sigma {where['sigma']:g}, jump {number(where['jump'], 3)}"
        formula.append([title, str(len(found)), f"{median:.1e}", f"{worst:.1e}", place])
        for sigma in (sigma for sigma in sigmas_of(rows, arm) if sigma in SHOWN_SIGMAS):
            images = [select(rows, arm, image, OWN, sigma) for image in (GUESS, RECOVERED)]
            cells = [column.cell(image) for column in errors for image in images]
            by_level.append([title, f"{sigma:g}", *cells, *means(ratios, images[1])])
        for what, name in SIGNALS.items():
            points = [kept(rows, arm, image, FRESH, what) for image in (GUESS, RECOVERED)]
            levels = [lost_from(each) for each in points]
            least = [min(share for _, share in each) for each in points]
            cells = ["kept" if level is None else f"sigma {level:g}" for level in levels]
            signals.append([title, name, *cells, *(f"{number(100 * x, 0)} %" for x in least)])
    sides = ("guess", RECOVERED)
    both = [f"{image}, {space}" for space in ("latents", "pixels") for image in sides]
    lost = [f"{image}: {what}" for what in ("half lost", "least left") for image in sides]
    columns = ["model", "cases", "median difference", "largest", "where"]
    return {
        "formula": Table(columns, formula),
        "errors": Table(["model", "sigma", *both, "ratio", "formula"], by_level),
        "signal_left": Table(["model", "what", *lost], signals),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    arms, errors, signals = rows.arms, [], []
    last = list(arms)[-1]
    for arm, title in arms.items():
        jumps = {row["jump"] for row in rows.where(arm=arm) if row.get("jump", 0) > 0}
        chosen = [(GUESS, 0.0, "guess")]
        chosen += [(RECOVERED, jump, f"jump {jump:g}") for jump in sorted(jumps)]
        lines = []
        for image, jump, name in chosen:
            points = []
            for sigma in sigmas_of(rows, arm):
                if found := over(select(rows, arm, image, OWN, sigma, jump), "latents_rmse"):
                    points.append((sigma, found["value"]))
            lines.append(Line(name, *map(list, zip(*points, strict=True))))
        errors.append(Panel(title, "sigma", "error", lines, log_y=True, named=arm == last))
    for what, (arm, title) in product(DRAWN, arms.items()):
        both = [kept(rows, arm, image, FRESH, what) for image in (GUESS, RECOVERED)]
        points = zip(("guess", RECOVERED), both, strict=True)
        lines = [Line(name, *map(list, zip(*each, strict=True))) for name, each in points]
        panel = Panel(title, "sigma", SIGNALS[what], lines, percent=True, named=arm == last)
        signals.append(panel)
    note = "Error (RMS, latents) of the one-step guess and after a jump down; rollout's own noise."
    file, title = folder / "recovery_errors.png", "Error of the recovered image and of x0_hat"
    first = curves(file, title, errors, note, columns=len(arms))
    file, title = folder / "recovery_scores.png", "What is left of the clean images' value"
    note = f"One-step guess and recovered image; jump {JUMP}, fresh noise, means over seeds."
    return [first, curves(file, title, signals, note, columns=len(arms))]
