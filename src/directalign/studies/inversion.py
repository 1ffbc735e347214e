"""Two branches, one branch, and ramps of other signs: what inversion is for, and whether half the calls do the same.

Two halves: trainings up to twice the recommended length, and, without any training, how much absolute and how much
relative preference is in the gradient of one update at each noise level.
"""

from __future__ import annotations

from ..config import SRPOConfig as Settings
from ..config import RunConfig
from ..config.load import load_run
from ..data.prompts import PromptStream, read_prompts
from ..models import load_model
from ..rewards import load_reward
from ..types import Batch
from . import coefficients
from .inversion_story import draw, tell
from .running.experiment import run_arms, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import sized
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "inversion"
TITLE = "Two branches, one branch and the half-cost variant"
QUESTION = (
    "The paper takes every update on a denoise and an inversion branch and says that inversion stops hacking. To first order the two add up to one update "
    "whose absolute preference changes its sign inside the window, so one denoise branch with such ramps should do the same for half the training calls. "
    "Here the official step is set against that half-cost step, against single branches and against the maintainers' tip of a negative ramp at low noise, up "
    "to twice the recommended length; and the absolute and relative shares of one update's gradient are measured against the derivation."
)
SEEDS = (0, 1, 2)
LONGER = 2
ONE_BRANCH = "method.branches=denoise"
ARMS = (
    Arm("official", "official, two branches", "world_official"),
    Arm("half_cost", "half cost, one branch", "world_half_cost"),
    Arm("denoise_only", "denoise only, official ramp", "world_official", (ONE_BRANCH,)),
    Arm("negative_ramp", "denoise only, k_pos −0.1 to 0.2", "world_official", (ONE_BRANCH, "method.denoise.k_pos={low_noise: -0.1, high_noise: 0.2}")),
    Arm("inversion_only", "inversion only", "world_official", ("method.branches=inversion",)),
    Arm("no_ramp", "denoise only, k = 0", "world_official", (ONE_BRANCH, "method.denoise.k_pos={low_noise: 0, high_noise: 0}")),
)
FITTED = ("official", "half_cost", "denoise_only", "negative_ramp")
POINTS = (50, 250, 500, 750, 950)
"""Landings of the 1000-point grid, from low to high noise, at which gradients are taken apart."""
BATCHES = 4


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train the arms and take gradients of the base model apart; quick: official and half cost, one seed, one landing."""
    chosen = [arm for arm in ARMS if not quick or arm.name in ("official", "half_cost")]
    rows = run_arms(NAME, [_longer(arm, recipes) for arm in chosen] if not quick else sized(chosen, quick), SEEDS[:1] if quick else SEEDS, out, recipes)
    fitted = sized([arm for arm in chosen if arm.name in FITTED], quick)
    settings = {arm: settings_of(arm, 0, recipes) for arm in fitted}
    for point in POINTS[2:3] if quick else POINTS:
        rows += piece(out, f"coefficients-{point}", settings[fitted[0]], lambda point=point: _taken_apart(settings, point, 1 if quick else BATCHES))
    return rows


def _longer(arm: Arm, recipes: Path) -> Arm:
    recommended = load_run(recipes / f"{arm.recipe}.yaml").train.num_steps
    longer = (f"train.num_steps={LONGER * recommended}", *arm.overrides)
    return sized([Arm(arm.name, arm.title, arm.recipe, longer)], quick=False)[0]


def _taken_apart(settings: dict[Arm, RunConfig], point: int, batches: int) -> list[Row]:
    """One row per arm and batch of prompts: measured and derived weights at one landing, on the model before training."""
    (first, run), *_ = settings.items()
    assert first.name == "official"
    family = load_model(run.model, "cpu", run.seed)
    reward = load_reward(run.reward)
    methods = {arm.name: _srpo(each) for arm, each in settings.items()}
    prompts = PromptStream(read_prompts(run.data.prompts or "world"), run.seed)
    rows = []
    for index in range(batches):
        batch = Batch(0, prompts.batch(index, size=run.data.batch_size), seed=index)
        found = coefficients.measured(family, reward, methods, methods[first.name], run.rollout, batch, point)
        sigma = float(coefficients.grid_of(methods[first.name]).levels[point - 1])
        rows += [_row(arm, methods[arm.name], index, point, sigma, *found[arm.name]) for arm in settings]
    return rows


def _row(arm: Arm, method: Settings, index: int, point: int, sigma: float, fit: coefficients.Fit, alignment: float) -> Row:
    absolute, relative = coefficients.derived(method, coefficients.grid_of(method), point)
    measured = {"absolute": fit.absolute, "relative": fit.relative, "explained": fit.explained, "alignment": alignment}
    where = {"study": NAME, "kind": "coefficients", "arm": arm.name, "title": arm.title, "seed": 0, "batch": index, "point": point, "sigma": sigma}
    return {**where, **measured, "derived_absolute": absolute, "derived_relative": relative}


def _srpo(run: RunConfig) -> Settings:
    assert isinstance(run.method, Settings)
    return run.method
