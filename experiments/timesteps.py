"""Where on the trajectory to train: at high noise (early), at low noise (late) or everywhere.

The paper finds that late training looks most hacked in 77 % of the prompts. Here the windows have
noise steps of one gain and equally many updates. Of the three images of one prompt and seed, that
one looks most hacked which has lost the prompt's content; among equals in that, the one farthest
from the true photograph, beyond the base model's image. So an unchanged model is not hacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from directalign.evaluation import image_metrics
from directalign.types import Images, PerSample

from . import plots
from .rows import Row, Rows, at_photo_rate, over
from .runner import Arm, folder_of, measurer_of, piece, run_arms, settings_of, sized
from .tables import MEASURED, Column, Table, means

SEEDS = (0, 1, 2)
GAIN = 0.15
WINDOWS = {"early": (0.98, 0.75), "late": (0.25, 0.02), "full": (0.98, 0.02)}
"""(highest, lowest) target noise level: a quarter of the scale at either end, or all of it."""
FORMS = {"absolute": ("Direct-Align", "world_direct_align"), "relative": ("SRPO", "world_official")}
DISTANCES = ("cast", "saturation", "sharpness")
HACKED = (
    Column("share", "most hacked", 0, percent=True),
    Column("lost", "content lost"),
    Column("drift", "drift beyond base", 2),
)


def arms_of_form(form: str) -> list[Arm]:
    """One arm per window."""
    (title, recipe), arms = FORMS[form], []
    for window, (high, low) in WINDOWS.items():
        levels = f"sigma_high: {high}, sigma_low: {low}, gain: {GAIN}"
        override = f"method.noise_levels={{kind: constant_gain, {levels}}}"
        arms.append(Arm(f"{form}_{window}", f"{title}, {window}", recipe, (override,)))
    return arms


def measure(out: Path, quick: bool) -> list[Row]:
    """Train every form in every window, compare images; quick: Direct-Align, one seed."""
    rows: list[Row] = []
    seeds = SEEDS[:1] if quick else SEEDS
    for form in list(FORMS)[: 1 if quick else None]:
        arms = sized(arms_of_form(form), quick)
        rows += run_arms("timesteps", arms, seeds, out)
        for seed in seeds:
            settings = settings_of(arms[0], seed)
            make = partial(_compare_images, form, seed, arms, out)
            rows += piece(out, f"{form}-seed{seed}", settings, make)
    return rows


def _compare_images(form: str, seed: int, arms: list[Arm], out: Path) -> list[Row]:
    """One row per window: share of pairs in which it looks most hacked, and means."""
    folders = {arm: folder_of(arm, seed, out) for arm in arms}
    base = _seen(folders[arms[0]], base=True)
    seen = {arm: _seen(folder) for arm, folder in folders.items()}
    distances = {name: base[name] for name in DISTANCES}
    beyond = {arm: excess_drift(each, distances) for arm, each in seen.items()}
    lost = torch.stack([each["lost"] for each in seen.values()])
    shares = most_hacked(lost, torch.stack(list(beyond.values()))).double()
    rows = []
    for arm, share in zip(arms, shares, strict=True):
        named = {"study": "timesteps", "kind": "hacking", "form": form, "seed": seed}
        named |= {"arm": arm.name, "title": arm.title, "pairs": len(share)}
        numbers = {"share": share.mean().item(), "drift": beyond[arm].mean().item()}
        numbers |= {name: each.double().mean().item() for name, each in seen[arm].items()}
        rows.append({**named, **numbers})
    return rows


def _seen(folder: Path, base: bool = False) -> dict[str, PerSample]:
    """Per image: `lost` (1: the judge misses the prompt's content), distances from the photo."""
    measurer = measurer_of(folder, base)
    images = measurer.images(len(measurer.pairs))
    lost = 1 - measurer.per_image(images)["content"]
    return {"lost": lost, **distances(images, measurer.fixed.images[: len(images)])}


def distances(images: Images, photographs: Images) -> dict[str, PerSample]:
    """Of each image from its photograph: cast (Euclidean), saturation, sharpness (log-ratio)."""
    numbers = (image_metrics.color_cast, image_metrics.saturation, image_metrics.sharpness)
    cast, saturation, sharpness = ([each(x) for x in (images, photographs)] for each in numbers)
    ratio = sharpness[0].clamp(min=1e-8) / sharpness[1].clamp(min=1e-8)
    changes = (cast[0] - cast[1]).norm(dim=1), (saturation[0] - saturation[1]).abs()
    return dict(zip(DISTANCES, (*changes, ratio.log().abs()), strict=True))


def excess_drift(found: Mapping[str, PerSample], base: Mapping[str, PerSample]) -> PerSample:
    """How much farther from the photograph than the base model's image; 0 where it came nearer.

    Mean over the distances, each in units of the base model's mean distance.
    """
    excess = [(found[name] - base[name]).clamp(min=0) / base[name].mean() for name in base]
    return torch.stack(excess).mean(0)


def most_hacked(
    lost: Float[Tensor, "models pairs"], drifted: Float[Tensor, "models pairs"]
) -> Float[Tensor, "models pairs"]:
    """1 for the most hacked model of every pair, split among ties; columns sum to 1."""
    drifted = drifted.masked_fill(lost != lost.amax(0), -torch.inf)
    chosen = (drifted == drifted.amax(0)).double()
    return (chosen / chosen.sum(0)).to(lost.dtype)


def tables(rows: Rows) -> dict[str, Table]:
    at_end = (Column("photo_rate", "photo rate"), MEASURED[2], Column("reward", "reward"))
    at_level = (Column("step", "updates", 0), *MEASURED[1:])
    ends, levels = [], []
    for form, (title, _) in FORMS.items():
        judged = rows.where(kind="hacking", form=form)
        arms = list(dict.fromkeys(row["arm"] for row in judged))
        runs = Rows(row for row in rows.runs if row["arm"] in arms)
        for arm in arms:
            window = arm.removeprefix(f"{form}_")
            high, low = WINDOWS[window]
            numbers = means(HACKED, judged.where(arm=arm))
            numbers += means(at_end, runs.last(arm))
            ends.append([title, window, f"{low:g} to {high:g}", *numbers])
        level = runs.highest_common(arms) if arms else 0.0
        if arms and level > runs.base["photo_rate"]:
            for arm, found in runs.matched(at_photo_rate(level)).items():
                window = arm.removeprefix(f"{form}_")
                levels.append([title, f"{level:.2f}", window, *means(at_level, found)])
    columns = ["objective", "window", "noise levels", *(each.title for each in (*HACKED, *at_end))]
    at_same = ["objective", "photo rate", "window", *(each.title for each in at_level)]
    return {"same_updates": Table(columns, ends), "same_photo_rate": Table(at_same, levels)}


def draw(rows: Rows, folder: Path) -> list[Path]:
    judged = rows.where(kind="hacking")
    by_arm = {row["arm"]: rows.where(kind="hacking", arm=row["arm"]) for row in judged}
    columns = []
    for column in HACKED:
        values = {arm: over(mine, column.key) for arm, mine in by_arm.items()}
        at = 1 / len(WINDOWS) if column.key == "share" else None
        columns.append(plots.DotColumn(column.title, values, column.key != "drift", at=at))
    note = "Share of prompt-seed pairs; the dashed line is chance."
    file, title = folder / "timesteps_hacking.png", "Which window looks most hacked"
    dots = plots.dots_with_intervals(file, title, columns, note)
    panels = plots.panels_over_updates(rows.runs, list(by_arm), banded=False)
    file, title = folder / "timesteps_curves.png", "Training in three windows"
    return [dots, plots.curves(file, title, panels, "Means over seeds.")]
