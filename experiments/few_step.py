"""Few-step models: does alignment blur them, and at whose steps are they to be aligned?

Users complain most often that alignment blurs distilled models. `world:flux_turbo` is the toy FLUX
with a LoRA that lets it sample in four steps, as Lightning and Turbo LoRAs do. Anchored SRPO aligns
it at its own four steps and noise levels (`own`), at the first two of these alone (`own_early`, the
recipe), and as the undistilled model is aligned, with rollouts of eight steps and the released
window of levels (`naive`). Beside them the undistilled
model, and its aligned weights with the LoRA added afterwards, sampled in four steps.

Decided beforehand, of photos after `UPDATES` updates. Alignment does not blur a few-step model if
it, sampled in four steps, has at least 90 % of the sharpness and of the fine detail that the
undistilled model has, aligned and sampled in eight steps: the whole 95 % interval over seeds above
0.9 is a yes, below it a no. The naive way blurs if its detail over that of `own` lies below 1 with
its whole interval. All other settings are those of `world_srpo`, not tuned for this study. Seed 0
of the other arms had been seen when `own_early` was added; it was tried once before, on seed 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from directalign.config import RunConfig
from directalign.evaluation.in_training import Measurer
from directalign.models import load_model
from directalign.toyworld.assets import file
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS

from .plots import Panel, curves, lines_along
from .rows import Row, Rows, cost_ratio
from .runner import (
    Arm,
    drop_weights,
    measurer_of,
    piece,
    row_of,
    run_arm,
    run_arms,
    settings_of,
    sized,
)
from .tables import Column, Table, means, with_interval

SEEDS = range(8)
UPDATES = 40
TRAINED = (f"train.num_steps={UPDATES}", "evaluate.every=0", "evaluate.diversity_prompts=8")
IN_FOUR = "rollout.num_inference_steps=4"
NAIVE = ("model.path=world:flux_turbo", IN_FOUR, "rollout.training_steps=8")
ALL_LEVELS = "method.noise_levels.last=null"
ARMS = [
    Arm("undistilled", "undistilled, 8 steps", "world_srpo", TRAINED),
    Arm("own", "few-step, at its own steps and levels", "world_turbo", (*TRAINED, ALL_LEVELS)),
    Arm("own_early", "few-step, at its first two levels", "world_turbo", TRAINED),
    Arm("naive", "few-step, aligned as the undistilled", "world_srpo", (*TRAINED, *NAIVE)),
]
SAMPLED = {
    "in_four": "undistilled, sampled in 4 steps",
    "lora_after": "undistilled, the LoRA added afterwards",
}
BASES = {
    "flux_8": ("undistilled, 8 steps", "model.path=world:flux"),
    "flux_4": ("undistilled, 4 steps", IN_FOUR),
    "turbo_4": ("few-step, 4 steps", "model.path=world:flux_turbo", IN_FOUR),
}
KEPT = {"sharpness": "sharpness", "high_frequency": "fine detail", "diversity": "diversity"}
"""Numbers of photos that are given relative to photographs through the autoencoder."""
COLUMNS = (
    Column("photo_rate", "photo rate"),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
    *(Column(f"{key}_kept", title) for key, title in KEPT.items()),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `reference`, of kind `sampled`, and training runs."""
    arms, rows = sized(ARMS, quick), []
    for name, (title, *overrides) in BASES.items():
        run = settings_of(arms[0].plus(*overrides, "evaluate.references=true"), 0)
        named = {"study": "few_step", "kind": "reference", "arm": name, "title": title, "seed": 0}
        found = piece(out, f"base-{name}", run, lambda r=run: references(r))
        rows += [{**named, **row} for row in found]
    for seed in (0,) if quick else SEEDS:
        rows += in_four_steps(arms[0], seed, out)
        rows += run_arms("few_step", arms, (seed,), out)
    return with_kept(Rows(rows))


def references(run: RunConfig) -> Iterator[Row]:
    """Photographs, photographs through the autoencoder, and the base asked with each phrase."""
    model = load_model(run.model, torch.device("cpu"))
    measurer = Measurer(run, model, None, load_judge(WORLDS[run.evaluate.judge]))
    for row in measurer.references()["rows"]:
        yield {"images": row.pop("kind"), **row_of(row)}


def in_four_steps(arm: Arm, seed: int, out: Path) -> list[Row]:
    """Aligned weights of the undistilled model in four steps, plain and with the LoRA added."""
    settings = settings_of(arm.plus(IN_FOUR), seed)

    def make() -> Iterator[Row]:
        folder = run_arm(arm, seed, out, keeps_weights=True)
        measurer = measurer_of(folder, settings=settings)
        for name, title in SAMPLED.items():
            if name == "lora_after":
                lora = next(file(WORLDS["world"], "flux_turbo").glob("*.safetensors"))
                weights = {key: each.float() for key, each in load_file(lora).items()}
                denoiser: Any = measurer.model.denoiser
                denoiser.load_lora_adapter(weights, prefix="transformer")
            measured = row_of(measurer.measure(settings.evaluate.num_samples))
            named = {"study": "few_step", "kind": "sampled", "arm": name, "title": title}
            yield {**named, "seed": seed, "step": settings.train.num_steps, **measured}
        drop_weights(folder)

    return piece(out, f"in-four-seed{seed}", settings, make)


def with_kept(rows: Rows) -> list[Row]:
    """Rows with the numbers of `KEPT`, of photos, relative to photographs through the
    autoencoder."""
    best = rows.where(kind="reference", images="autoencoded")[0]
    scale = {key: best[f"photos_{key}"] for key in KEPT}
    return [
        row | {f"{k}_kept": row[f"photos_{k}"] / scale[k] for k in KEPT if f"photos_{k}" in row}
        for row in rows
    ]


def tables(rows: Rows) -> dict[str, Table]:
    asked, runs, titles = rows.where(kind="reference"), rows.runs, [c.title for c in COLUMNS]
    bases = [["photographs through the autoencoder", *means(COLUMNS, _autoencoded(asked))]]
    for name, title in asked.arms.items():
        found = Rows(row for row in asked.where(arm=name, images="asked"))
        phrases = {row["phrase"]: row for row in found}
        bases += [
            [f'{title}, asked "{phrase}."', *means(COLUMNS, [row])]
            for phrase, row in phrases.items()
        ]
    aligned = [
        [title, str(step), *means(COLUMNS, runs.at(arm, step))]
        for arm, title in runs.arms.items()
        for step in sorted({row["step"] for row in runs})
    ]
    sampled = rows.where(kind="sampled")
    last = str(max(row["step"] for row in runs))
    aligned += [
        [title, last, *means(COLUMNS, sampled.where(arm=arm))] for arm, title in SAMPLED.items()
    ]
    return {
        "bases": Table(["images", *titles], bases),
        "aligned": Table(["model", "updates", *titles], aligned),
        "kept": Table(["compared, after all updates", *KEPT.values(), "seeds"], _ratios(rows)),
    }


def _autoencoded(asked: Rows) -> Rows:
    return Rows(asked.where(images="autoencoded")[:1])


def _ratios(rows: Rows) -> list[list[str]]:
    """Lines of ratios over seeds of the numbers of `KEPT`."""
    runs = rows.runs
    last = Rows([*runs.where(step=max(row["step"] for row in runs)), *rows.where(kind="sampled")])
    titles = {arm.name: arm.title for arm in ARMS} | SAMPLED
    lines = []
    for ours, theirs in (
        *((name, "undistilled") for name in ("own", "own_early", "naive", *SAMPLED)),
        ("naive", "own"),
        ("own_early", "naive"),
    ):
        pairs = last.pairs(ours, theirs, lambda run: run[-1])
        names = {f"{key}_kept" for key in KEPT}
        known = [pair for pair in pairs if all(names <= row.keys() for row in pair)]
        cells = [with_interval(cost_ratio(known, f"{key}_kept"), 2) for key in KEPT]
        lines.append([f"{titles[ours]}, over: {titles[theirs]}", *cells, str(len(pairs))])
    return lines


def draw(rows: Rows, folder: Path) -> list[Path]:
    panels = [
        Panel(column.title.capitalize(), "updates", "", lines_along(rows.runs, "step", column.key))
        for column in COLUMNS
    ]
    title = "A few-step model, aligned at its own steps and as the undistilled one"
    return [curves(folder / "few_step_curves.png", title, panels, "Means over seeds")]
