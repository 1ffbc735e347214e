"""The comparison on Stable Diffusion (epsilon and v), and the closed form on other noise schedules.

The closed form is compared with diffusers' DDIM step on three tables of alphas: one step down, then
minus the known noise, in float64; the same in float32 shows which way keeps its digits.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from directalign.diffusion.path import DDPMTable, alpha, expand_like, target
from directalign.diffusion.recovery import inject, recover
from directalign.diffusion.rng import draw_noise, generator_for
from directalign.toyworld import assets
from directalign.types import Latents, Noised, PerSample

from .plots import DotColumn, Point, dots_with_intervals, plane, title_of
from .rows import Row, Rows, at_photo_rate, over
from .runner import Arm, run_arms, sized
from .tables import MEASURED as RUN_QUALITY
from .tables import Column, Table, means

SEEDS = (0, 1, 2)
LEVEL = 0.5
"""The photo rate at which methods are compared."""


@dataclass(frozen=True)
class Group:
    """Arms that are compared with each other on one prediction; `parts` are (what varies, arm)."""

    name: str
    prediction: str
    parts: tuple[tuple[str, Arm], ...]


OFFICIAL_RAMPS = (
    "method.form=relative",
    "method.branches=both",
    "method.control_phrases.order=cycle",
    "method.denoise={k_pos: {low_noise: 0.1, high_noise: 0.25}}",
    "method.inversion={k_neg: {low_noise: 0.3, high_noise: 0.01}}",
)
METHODS = {
    "srpo": ("SRPO, anchored", "world_sd", ()),
    "srpo_official": ("SRPO, official ramps", "world_sd", OFFICIAL_RAMPS),
    "direct_align": ("Direct-Align", "world_sd_direct_align", ()),
    "refl": ("ReFL", "world_sd_refl", ()),
    "draft_lv": ("DRaFT-LV", "world_sd_draft_lv", ()),
    "flow_grpo": ("Flow-GRPO (DDIM steps)", "world_sd_flow_grpo", ("evaluate.every=10",)),
}
"""Title, recipe and overrides. The recipe of policy gradient spends several times the NFE."""
MODELS = {"epsilon": "world:sd", "v": "world:sd_v"}
ON_V = ("srpo", "direct_align", "refl")
QUICK_METHODS = {
    "refl": ("method.last_steps=1",),
    "flow_grpo": ("method.trained_steps=1", "method.group_size=2"),
}
"""What fits a rollout of two steps."""
MEASURED = ("evaluate.num_samples=32", "evaluate.num_samples_during=32", "evaluate.every=10")
RECIPE_WINDOW = "constant_gain, sigma_high: 0.98, sigma_low: 0.7, gain: 0.2"
WINDOWS = {
    "gain .2, sigma .98 to .7 (recipe)": RECIPE_WINDOW,
    "jump .02, sigma .96 to .5": "uniform, sigma_high: 0.96, sigma_low: 0.5, jump: 0.02",
    "official grid, sigma .964 to .75": "window",
}


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of all runs, with `group`, `prediction` and `what`; then the rows of kind `schedule`."""
    seeds = SEEDS[:1] if quick else SEEDS
    found: list[Row] = []
    for group in groups(out, quick):
        what = {arm.name: what for what, arm in group.parts}
        named = {"group": group.name, "prediction": group.prediction}
        arms = sized([arm for _, arm in group.parts], quick)
        for row in run_arms("ddpm", arms, seeds, out):
            found.append({**row, **named, "what": what[row["arm"]]})
    facts = {key: found[0][key] for key in ("study", "commit", "machine", "versions")}
    return found + [{**facts, **row} for seed in seeds for row in exactness(seed)]


def groups(out: Path, quick: bool) -> list[Group]:
    """What is trained; quick: every method on epsilon, SRPO on v, and one other grid."""
    methods = [Group("methods", name, methods_of(name, quick)) for name in MODELS]
    trailing = f"model.path={with_spacing(out / 'models', 'trailing')}"
    grids = {"10 steps, trailing": trailing, "5 steps, leading": "rollout.num_inference_steps=5"}
    grid = Group("grids", "epsilon", _variants("grid", grids))
    if quick:
        small = (replace(group, parts=group.parts[:1]) for group in (methods[1], grid))
        return [methods[0], *small]
    moves = {title: f"method.noise_levels={{kind: {move}}}" for title, move in WINDOWS.items()}
    return [*methods, Group("windows", "epsilon", _variants("window", moves)), grid]


def methods_of(prediction: str, quick: bool) -> tuple[tuple[str, Arm], ...]:
    """Every method on one of the two checkpoints."""
    arms = []
    for name, (title, recipe, overrides) in METHODS.items():
        if prediction == "epsilon" or name in ON_V:
            extra = QUICK_METHODS.get(name, ()) if quick else ()
            model = f"model.path={MODELS[prediction]}"
            changes = (model, *MEASURED, *overrides, *extra)
            arm = Arm(f"{prediction}-{name}", f"{title}, {prediction}", recipe, changes)
            arms.append((name, arm))
    return tuple(arms)


def _variants(name: str, overrides: dict[str, str]) -> tuple[tuple[str, Arm], ...]:
    """Anchored SRPO with one setting changed."""
    parts = []
    for place, (title, override) in enumerate(overrides.items()):
        changes = (*MEASURED, "evaluate.every=0", override)
        parts.append((title, Arm(f"{name}-{place}", title, "world_sd", changes)))
    return tuple(parts)


def with_spacing(folder: Path, spacing: str) -> Path:
    """The embedded Stable Diffusion with another of diffusers' timestep spacings; made once."""
    model = folder / f"sd-{spacing}"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            copy = shutil.copytree(assets.resolve("world:sd"), Path(partial) / "sd")
            file = copy / "scheduler" / "scheduler_config.json"
            settings = json.loads(file.read_text(encoding="utf-8")) | {"timestep_spacing": spacing}
            file.write_text(json.dumps(settings), encoding="utf-8")
            copy.replace(model)
    return model


# --- the closed form on other schedules -----------------------------------------------------------

SHAPE = (1, 4, 4, 4)
NUM_STEPS = 50
Predicted = Literal["epsilon", "v"]


@dataclass(frozen=True)
class Schedule:
    """A DDPM's table of alphas, as settings of a diffusers scheduler."""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    predictions: tuple[Predicted, ...] = ("epsilon", "v")


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = SD | {"rescale_betas_zero_snr": True}
SCHEDULES = {
    "scaled_linear": Schedule("scaled linear (SD 1.5)", SD),
    "cosine": Schedule("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    # At alpha = 0 epsilon does not determine x0.
    "zero_snr": Schedule("scaled linear, zero terminal SNR", ZERO_SNR, ("v",)),
}


def exactness(seed: int) -> list[Row]:
    """A row per schedule and prediction: differences over all steps of a 50-step grid.

    `largest`: float64, |recovered − stepped| over the size of the recovered image.
    `closed_float32`, `stepped_float32`: median differences of both ways in float32 from the float64
    image. `roundtrip`: largest error, in timesteps, of timestep -> sigma -> timestep.
    """
    rows = []
    for name, schedule in SCHEDULES.items():
        for prediction in schedule.predictions:
            stepper = ddim(schedule, prediction)
            table = DDPMTable(stepper.alphas_cumprod)
            differences = list(_differences(stepper, table, prediction, seed))
            found = torch.tensor(differences, dtype=torch.float64)
            medians = found.median(0).values.tolist()
            times = torch.arange(0, len(table.sigmas) - 1, 0.5, dtype=torch.float64)
            back = (table.timestep_of(table.sigma_of(times)) - times).abs().max()
            named = {"kind": "schedule", "arm": name, "title": schedule.title, "seed": seed}
            sigmas = {"sigma_high": float(table.sigmas[-1]), "sigma_low": float(table.sigmas[0])}
            numbers = {"largest": float(found[:, 0].max()), "closed_float32": medians[1]}
            numbers |= {"stepped_float32": medians[2], "roundtrip": float(back)}
            count = {"prediction": prediction, "steps": len(found)}
            rows.append({**named, **count, **sigmas, **numbers})
    return rows


def ddim(schedule: Schedule, prediction: Predicted) -> DDIMScheduler:
    """diffusers' DDIM with a float64 table, visiting the last timestep first."""
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    fixed = {"prediction_type": kind, "clip_sample": False, "timestep_spacing": "trailing"}
    stepper = DDIMScheduler(**schedule.settings, **fixed, set_alpha_to_one=True)
    stepper.alphas_cumprod = stepper.alphas_cumprod.double()
    stepper.final_alpha_cumprod = stepper.final_alpha_cumprod.double()
    stepper.set_timesteps(NUM_STEPS)
    return stepper


def _differences(
    stepper: DDIMScheduler, table: DDPMTable, prediction: Predicted, seed: int
) -> Iterator[tuple[float, float, float]]:
    """Per step down: closed form against step (float64); both in float32 against float64."""
    stride = stepper.config["num_train_timesteps"] // NUM_STEPS
    for timestep in stepper.timesteps:
        x0, noise, error = (
            draw_noise(SHAPE, generator_for(seed, int(timestep), part)).double()
            for part in range(3)
        )
        sigma_from, after = table.sigma_of(timestep[None]), int(timestep) - stride
        sigma_to = torch.zeros(1, dtype=torch.float64)
        if after >= 0:
            sigma_to = table.sigma_of(torch.tensor([after]))
        noised = inject("vp", x0, noise, sigma_from)
        pred = target("vp", prediction, x0, noise, sigma_from) + error
        exact = recover("vp", prediction, noised, pred, sigma_to).x0
        single = Noised(noised.x_t.float(), x0.float(), noise.float(), sigma_from)
        images = (
            by_step(stepper, timestep, noised, pred, sigma_to),
            recover("vp", prediction, single, pred.float(), sigma_to).x0,
            by_step(stepper, timestep, single, pred.float(), sigma_to),
        )
        size = exact.square().mean().sqrt()
        first, second, third = (float((x.double() - exact).abs().max() / size) for x in images)
        yield first, second, third


def by_step(
    stepper: DDIMScheduler, timestep: Tensor, noised: Noised, pred: Latents, sigma_to: PerSample
) -> Latents:
    """diffusers' step to the next lower timestep, minus the known noise, in pred's precision."""
    table = stepper.alphas_cumprod
    stepper.alphas_cumprod = table.to(pred.dtype)
    x_to = stepper.step(pred, int(timestep), noised.x_t, eta=0.0, return_dict=False)[0]
    stepper.alphas_cumprod = table
    clean = x_to - expand_like(sigma_to, x_to) * noised.noise
    return clean / expand_like(alpha("vp", sigma_to), x_to)


# --- tables and figures ---------------------------------------------------------------------------

_SPENT = {"step": "updates", "call_equivalents": "NFE equivalents", "seconds": "seconds"}
SPENT = tuple(Column(key, title, 0, interval=False) for key, title in _SPENT.items())
_RATES = [Column(each.key, each.title, 0, percent=True) for each in RUN_QUALITY[:2]]
JUDGED = (*_RATES, RUN_QUALITY[2], Column("reward", "reward"))
VARIED = {"windows": "training noise levels", "grids": "sampling grid"}
SCHEDULE = {
    "largest": "largest difference, float64",
    "closed_float32": "closed form, float32",
    "stepped_float32": "stepping, float32",
    "roundtrip": "timestep round trip",
}


def group_arms(rows: Rows, group: str) -> dict[str, tuple[str, str]]:
    """{arm: (prediction, what varies)} of one group."""
    return {row["arm"]: (row["prediction"], row["what"]) for row in rows.where(group=group)}


def tables(rows: Rows) -> dict[str, Table]:
    methods, matched, levels, seen = [], [], [], set()
    at_rate = (SPENT[1], *JUDGED[1:3])
    for arm, (prediction, what) in group_arms(rows, "methods").items():
        if prediction not in seen:
            base = means(JUDGED, rows.at(arm, 0))
            methods.append([prediction, "base model", "0", "0", "0", *base])
            seen.add(prediction)
        title = title_of(what)
        methods.append([prediction, title, *means((*SPENT, *JUDGED), rows.last(arm))])
        found = [row for run in rows.runs_of(arm) if (row := at_photo_rate(LEVEL)(run))]
        reached = f"{len(found)} of {len(rows.seeds(arm))}"
        matched.append([prediction, title, reached, *means(at_rate, found)])
    for group, varied in VARIED.items():
        for arm, (_, what) in group_arms(rows, group).items():
            levels.append([varied, what, *means((SPENT[0], *JUDGED), rows.last(arm))])
    schedules: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows.where(kind="schedule"):
        span = f"{row['sigma_high']:.4f} to {row['sigma_low']:.4f}"
        schedules.setdefault((row["title"], row["prediction"], span), []).append(row)
    closed = [
        [*named, *(f"{max(row[key] for row in found):.0e}" for key in SCHEDULE)]
        for named, found in schedules.items()
    ]
    start, numbers = ["prediction", "method"], [column.title for column in JUDGED]
    reached = [*start, "seeds that reach it", *(column.title for column in at_rate)]
    spent = [column.title for column in SPENT]
    return {
        "methods": Table([*start, *spent, *numbers], methods),
        "matched_photo_rate": Table(reached, matched),
        "noise_levels": Table(["varied", "setting", "updates", *numbers], levels),
        "closed_form": Table(["schedule", "prediction", "sigma", *SCHEDULE.values()], closed),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    files, methods, keys = [], group_arms(rows, "methods"), ("photo_rate", "color_drift")
    for prediction in MODELS:
        points = []
        for arm, what in ((arm, what) for arm, (of, what) in methods.items() if of == prediction):
            x, y = (over(rows.last(arm), key) for key in keys)
            ways = zip(*(rows.curve(arm, key) for key in keys), strict=True)
            trail = [(photo["value"], drift["value"]) for (_, photo), (_, drift) in ways]
            if x is not None and y is not None:
                points.append(Point(what, x, y, [trail]))
        if points:
            note = f"Stable Diffusion, {prediction}: the end of each run and its trajectory."
            file, title = folder / f"ddpm_{prediction}.png", "Photo rate and colour drift"
            files.append(plane(file, title, "photo rate", "colour drift", points, note))
    arms = {arm: what for group in VARIED for arm, (_, what) in group_arms(rows, group).items()}
    columns = []
    for column in JUDGED[:3]:
        values = {what: over(rows.last(arm), column.key) for arm, what in arms.items()}
        columns.append(DotColumn(column.title, values, percent=column.percent))
    file, title = folder / "ddpm_levels.png", "SRPO over other windows and other grids"
    note = "Stable Diffusion, epsilon; means and 95 % intervals over seeds."
    return [*files, dots_with_intervals(file, title, columns, note)]
