"""Two branches, one branch and the half-cost variant.

The paper says that the inversion branch stops reward hacking. To first order the two branches add
up to one update whose absolute preference changes sign inside the window, so one denoise branch
with such ramps should do the same for half the training NFE. Without training, the gradient of one
update is fitted by least squares with those of a purely absolute reward (pos + neg)/2 and a purely
relative one (pos − neg) at the same noise level: a branch must add (k_pos − k_neg) of the first and
1 + (k_pos + k_neg)/2 of the second (docs/method.md, section 4).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from directalign import config
from directalign.data.prompts import PromptStream, read_prompts
from directalign.diffusion import noise_levels
from directalign.interfaces import Model, Reward
from directalign.methods.objective_math import absolute_relative, from_absolute_relative
from directalign.methods.srpo import SRPO
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.types import Batch, DirectAlignError

from .plots import Panel, curves, line, panels_over_updates
from .rows import Row, Rows, SeedInterval, after, at_photo_rate, mean_of
from .runner import Arm, num_steps_of, piece, run_arms, settings_of, sized
from .tables import MEASURED, VERSUS, Column, Table, means, number, versus

Weights = Float[Tensor, " weights"]
SEEDS = (0, 1, 2)
LONGER = 2
OFFICIAL, HALF = "official", "half_cost"
_ONE = "method.branches=denoise"
_RAMP = "method.denoise.k_pos={low_noise: %s, high_noise: %s}"
_NEGATIVE = (_ONE, _RAMP % (-0.1, 0.2))
ARMS = (
    Arm(OFFICIAL, "official, two branches", "world_official"),
    Arm(HALF, "half cost, one branch", "world_half_cost"),
    Arm("denoise_only", "denoise only, official ramp", "world_official", (_ONE,)),
    Arm("negative_ramp", "denoise only, k_pos −0.1 to 0.2", "world_official", _NEGATIVE),
    Arm("inversion_only", "inversion only", "world_official", ("method.branches=inversion",)),
    Arm("no_ramp", "denoise only, k = 0", "world_official", (_ONE, _RAMP % (0, 0))),
)
FITTED = (OFFICIAL, HALF, "denoise_only", "negative_ramp")
POINTS = (50, 250, 500, 750, 950)
"""Target levels on the 1000-point grid, from low to high noise, at which gradients are fitted."""
BATCHES = 4
WEIGHTS = (
    "step | noise level | absolute, derived | absolute, measured | relative, derived | "
    "relative, measured | explained | cosine with official"
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Train the arms, fit gradients of the base model; quick: two arms, one seed, one level."""
    chosen, seeds = list(ARMS), SEEDS
    if quick:
        chosen, seeds = [arm for arm in ARMS if arm.name in (OFFICIAL, HALF)], SEEDS[:1]
    longer = []
    for arm in chosen:
        length = f"train.num_steps={LONGER * num_steps_of(arm.recipe)}"
        longer.append(replace(arm, overrides=(length, *arm.overrides)))
    rows = run_arms("inversion", sized(longer, quick), seeds, out)
    fitted = sized([arm for arm in chosen if arm.name in FITTED], quick)
    settings = {arm: settings_of(arm, 0) for arm in fitted}
    for point in POINTS[2:3] if quick else POINTS:
        make = partial(fit_gradients, settings, point, 1 if quick else BATCHES)
        rows += piece(out, f"coefficients-{point}", settings[fitted[0]], make)
    return rows


# --- weights in the gradient ----------------------------------------------------------------------


@dataclass(frozen=True)
class OnePoint(noise_levels.GridSampler):
    """The official grid with one target point for every sample."""

    point: int = 500

    def draw(self, b: int, generator: torch.Generator) -> noise_levels.GridPoints:
        return torch.full((b,), self.point)


@dataclass(frozen=True)
class Fit:
    """gradient ≈ absolute·∇(pos + neg)/2 + relative·∇(pos − neg); `explained`: share of it."""

    absolute: float
    relative: float
    explained: float


def project(gradient: Weights, absolute: Weights, relative: Weights) -> Fit:
    """Least squares of a gradient on two others, in float64."""
    gradient, basis = gradient.double(), torch.stack([absolute, relative]).double()
    weights = torch.linalg.solve(basis @ basis.T, basis @ gradient)
    left = gradient - weights @ basis
    explained = 1 - float(left.dot(left) / gradient.dot(gradient))
    return Fit(float(weights[0]), float(weights[1]), explained)


def derived(
    settings: config.SRPOConfig, window: noise_levels.GridSampler, point: int
) -> tuple[float, float]:
    """(absolute, relative) weight of an update to `point`, summed over its branches."""
    target, weights = torch.tensor([point]), []
    for name in ("denoise", "inversion"):
        if settings.branches in ("both", name):
            position, branch = getattr(window, name)(target).position, getattr(settings, name)
            k_pos, k_neg = (float(k.at(position)) for k in (branch.k_pos, branch.k_neg))
            weights.append([float(weight) for weight in absolute_relative(k_pos, k_neg)])
    return math.fsum(mu for mu, _ in weights), math.fsum(nu for _, nu in weights)


def with_weights(settings: config.SRPOConfig, mu: float, nu: float) -> config.SRPOConfig:
    """The same noise steps with constant weights (absolute, relative) in each branch."""
    ramps = [
        config.RampConfig(low_noise=float(k), high_noise=float(k))
        for k in from_absolute_relative(mu, nu)
    ]
    branch = config.BranchConfig(k_pos=ramps[0], k_neg=ramps[1])
    return settings.model_copy(update={"denoise": branch, "inversion": branch})


def grid_of(settings: config.SRPOConfig) -> noise_levels.GridSampler:
    """The official grid of the settings. Raises: DirectAlignError for other noise steps."""
    grid = settings.noise_levels
    if not isinstance(grid, config.GridNoiseLevels):
        key, why = "method.noise_levels.kind", "gradients are fitted on the official grid"
        raise DirectAlignError(f"{key} {grid.kind}: {why}; set {key}: window")
    span = (grid.first, grid.last, grid.points, grid.groundtruth_ratio)
    return noise_levels.GridSampler(grid.schedule_steps, grid.schedule_shift, *span)


def ascent(
    model: Model,
    reward: Reward,
    settings: config.SRPOConfig,
    rollout: config.RolloutConfig,
    batch: Batch,
    point: int,
) -> Weights:
    """Minus the gradient of the loss of one update with target `point`."""
    method = SRPO(model, reward, settings, rollout)
    method.sampler = OnePoint(**asdict(grid_of(settings)), point=point)
    parameters = list(trainable(model).values())
    total = torch.zeros(())
    for loss in method.losses(batch):
        gradients = torch.autograd.grad(loss.value, parameters, materialize_grads=True)
        total = total - torch.nn.utils.parameters_to_vector(gradients)
    return total


def fit_gradients(settings: dict[Arm, config.RunConfig], point: int, batches: int) -> list[Row]:
    """One row per arm and batch of prompts: measured and derived weights, before training.

    All are fitted with the same two gradients: those of the official noise steps, averaged over
    the official branches. `alignment` is the cosine with the official gradient.
    """
    (first, run), *_ = settings.items()
    model, reward = load_model(run.model, "cpu", run.seed), load_reward(run.reward)
    methods: dict[Arm, Any] = {arm: each.method for arm, each in settings.items()}
    official = methods[first]
    prompts = PromptStream(read_prompts(run.data.prompts or "world"), run.seed)
    sigma = float(grid_of(official).levels[point - 1])
    rows = []
    for index in range(batches):
        batch = Batch(0, prompts.batch(index, size=run.data.batch_size), seed=index)

        def direction(method: config.SRPOConfig, batch: Batch = batch) -> Weights:
            return ascent(model, reward, method, run.rollout, batch, point)

        branches = 2 if official.branches == "both" else 1
        absolute = direction(with_weights(official, 1.0, 0.0)) / branches
        relative = direction(with_weights(official, 0.0, 1.0)) / branches
        reference = direction(official).double()
        for arm, method in methods.items():
            gradient = direction(method)
            cosine = torch.nn.functional.cosine_similarity(gradient.double(), reference, dim=0)
            mu, nu = derived(method, grid_of(method), point)
            named = {"study": "inversion", "kind": "coefficients", "arm": arm.name}
            named |= {"title": arm.title, "seed": 0, "batch": index, "point": point, "sigma": sigma}
            fit = {**asdict(project(gradient, absolute, relative)), "alignment": float(cosine)}
            rows.append({**named, **fit, "derived_absolute": mu, "derived_relative": nu})
    return rows


# --- tables and figures ---------------------------------------------------------------------------


def by_level(fitted: Rows, arm: str, key: str) -> list[tuple[float, SeedInterval]]:
    """(noise level, mean over batches) of one number, from low to high noise."""
    levels: dict[int, list[Row]] = {}
    for row in sorted(fitted.where(arm=arm), key=lambda row: row["point"]):
        levels.setdefault(row["point"], []).append(row)
    return [
        (each[0]["sigma"], mean_of(key, [row[key] for row in each])) for each in levels.values()
    ]


def tables(rows: Rows) -> dict[str, Table]:
    runs, fitted = rows.runs, rows.where(kind="coefficients")
    steps = sorted({row["step"] for row in runs.where(arm=OFFICIAL)})
    lengths = [step for step in (steps[-1] // 3, steps[-1]) if step in steps and step > 0]
    costs = {"call_equivalents": "NFE equivalents", "seconds": "seconds"}
    columns = [*MEASURED, *(Column(key, x, 0, interval=False) for key, x in costs.items())]
    trained = [
        [str(step), title, *means(columns, runs.at(arm, step))]
        for step in lengths
        for arm, title in runs.arms.items()
    ]
    conditions = {f"after {step} updates": after(step) for step in lengths}
    level = runs.highest_common([HALF, OFFICIAL])
    if level > runs.base["photo_rate"]:
        conditions[f"at photo rate {level:.2f}"] = at_photo_rate(level)
    fits = []
    fitted_keys = ("absolute", "relative", "explained", "alignment")
    columns_of_fit = [Column(key, key) for key in fitted_keys]
    for arm in (OFFICIAL, HALF):
        for point in sorted({row["point"] for row in fitted}):
            each = fitted.where(arm=arm, point=point)
            absolute, relative, explained, alignment = means(columns_of_fit, each)
            mu, nu = (number(each[0][f"derived_{key}"], 3) for key in ("absolute", "relative"))
            start = [each[0]["title"], number(each[0]["sigma"], 3)]
            fits.append([*start, mu, absolute, nu, relative, explained, alignment])
    return {
        "trainings": Table(["updates", "step", *(column.title for column in columns)], trained),
        "half_cost": Table(VERSUS, versus(runs, HALF, OFFICIAL, conditions)),
        "gradient_weights": Table(WEIGHTS.split(" | "), fits),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs, fitted = rows.runs, rows.where(kind="coefficients")
    panels = panels_over_updates(runs, list(runs.arms), banded=False)
    file, title = folder / "inversion_curves.png", "What the branches and their ramps do"
    first = curves(file, title, panels, "Means over seeds.", columns=2)
    weights = []
    for key, sum_ in (("absolute", "(pos + neg)/2"), ("relative", "pos − neg")):
        title, lines = f"weight of {sum_}", []
        for arm in (OFFICIAL, HALF):
            lines.append(line(arm, by_level(fitted, arm, key)))
            points = by_level(fitted, arm, f"derived_{key}")
            lines.append(line(f"{arm}_derived", points, banded=False))
        weights.append(Panel(title, "target noise level", title, lines))
    note = "Fitted to the gradient before training; bands are intervals over batches."
    title = "Absolute and relative preference in an update"
    return [first, curves(folder / "inversion_weights.png", title, weights, note, columns=2)]
