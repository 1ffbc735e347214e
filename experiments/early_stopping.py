"""Runs of ten times the recommended length, free, with a judge and a budget, and without a judge.

The absolute score under the positive phrases rises, peaks and falls when a relative reward erases
the image. The best of a free run is the measurement with the highest photo rate among those that
lost at most `LOSS` of the content, the earliest of equals; it is known in hindsight only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .plots import Point, plane
from .rows import Row, Rows, mean_of
from .runner import Arm, folder_of, num_steps_of, run_arms, sized
from .tables import DASH, Column, Table, means

SEEDS = (0, 1, 2)
TIMES = 10
"""How much longer than recommended."""
PAIRS, PAIRS_DURING = 256, 128
LOSS = 0.03
"""Content that the best may have lost; the runs' own limit is smaller, as 128 pairs are noisy."""
FREE, JUDGED, UNJUDGED = "free", "judged", "unjudged"
RULES = {
    FREE: ("no early stopping", None),
    JUDGED: (
        "max_degradation and metric",
        {"max_degradation": {"content": 0.02}, "metric_for_best": "photo_rate", "patience": 6},
    ),
    UNJUDGED: ("score peak only", {"score_patience": 3, "metric_for_best": "score_pos"}),
}
BEST = "best in hindsight"
SCENES = ("red star on a navy", "blue ring on a white", "pink ring on a gray")
SAMPLES = ", ".join(f"a {scene} background" for scene in SCENES)


@dataclass(frozen=True)
class Form:
    """A form of the reward by its recipe, measured every `every` updates."""

    name: str
    title: str
    recipe: str
    every: int
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS


OFFICIAL_RATE = ("train.learning_rate=3e-5",)
"""The official ramps ruin the image fast, so they take small steps here."""
FORMS = (
    Form("anchored", "anchored", "world_srpo", 10),
    Form("official", "official ramps", "world_official", 5, OFFICIAL_RATE),
    Form("plain", "plain Direct-Align", "world_direct_align", 5, seeds=SEEDS[:1]),
)
TITLES = {form.name: form.title for form in FORMS}


def measure(out: Path, quick: bool) -> list[Row]:
    """Train every form under every rule; quick: one form, one seed, two updates."""
    rows: list[Row] = []
    for form in FORMS[:1] if quick else FORMS:
        seeds = SEEDS[:1] if quick else form.seeds
        for rule in RULES:
            arm = arm_of(form, rule, quick)
            rows += run_arms("early_stopping", [arm], seeds, out)
            for seed in seeds:
                rows.append(_ending(arm, form, rule, seed, folder_of(arm, seed, out)))
    return rows


def arm_of(form: Form, rule: str, quick: bool) -> Arm:
    """A form of the reward under a rule, over `TIMES` its recommended length."""
    title, settings = RULES[rule]
    control = (f"early_stopping={json.dumps(settings)}",) if settings is not None else ()
    num_steps = TIMES * num_steps_of(form.recipe)
    length = (
        *(f"train.num_steps={num_steps}", f"train.sample_every={num_steps // 10}"),
        *(f"evaluate.every={form.every}", f"evaluate.num_samples={PAIRS}"),
        *(f"evaluate.num_samples_during={PAIRS_DURING}", f"train.sample_prompts=[{SAMPLES}]"),
    )
    overrides = (*form.overrides, *(() if quick else length), *control)
    arm = Arm(f"{form.name}_{rule}", f"{form.title}, {title}", form.recipe, overrides)
    arm = sized([arm], quick)[0]
    return arm.plus("evaluate.every=1") if quick else arm


def _ending(arm: Arm, form: Form, rule: str, seed: int, folder: Path) -> Row:
    """When and why a run stopped, which weights it left, and their numbers on all pairs."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stopped, left = summary.get("stopped") or {}, summary["after"]
    named = {"study": "early_stopping", "kind": "ending", "arm": arm.name, "title": arm.title}
    named |= {"form": form.name, "rule": rule, "seed": seed, "updates": summary["num_steps"]}
    named |= {"reason": stopped.get("reason"), "says": stopped.get("says")}
    numbers = {name: left[name]["value"] for name in ("photo_rate", "content")}
    numbers |= {"color_drift": left["color_drift"], "align_seconds": summary["align_seconds"]}
    facts = {name: summary[name] for name in ("commit", "machine", "versions")}
    return {**named, "kept": (summary.get("kept") or left)["step"], **numbers, **facts}


def best_of(form: str, seed: int, runs: Rows, loss: float = LOSS) -> Row:
    """The best measurement of a free run in hindsight; the base model's where all lost too much.

    The controlled run of the same seed measured the base model on the pairs of its measurements.
    """
    whole = runs.run(f"{form}_{JUDGED}", seed)[0]["content"]
    within = [
        row
        for row in runs.run(f"{form}_{FREE}", seed)
        if whole - row["content"] <= loss + 1e-9 or row["step"] == 0
    ]
    return max(within, key=lambda row: (row["photo_rate"], -row["step"]))


def tables(rows: Rows) -> dict[str, Table]:
    columns = (
        Column("photo_rate", "photo rate", 0, percent=True),
        Column("content", "content", 0, percent=True),
        Column("color_drift", "colour drift"),
    )
    endings, runs, lines = rows.where(kind="ending"), rows.runs, []

    def mean(found: Sequence[Row], key: str) -> str:
        return f"{sum(row[key] for row in found) / len(found):.0f}"

    for form in dict.fromkeys(row["form"] for row in endings):
        for rule, (title, _) in RULES.items():
            found = endings.where(kind="ending", form=form, rule=rule)
            counts = [mean(found, "updates"), mean(found, "kept")]
            lines.append([f"{TITLES[form]}, {title}", *counts, *means(columns, found)])
        best = [best_of(form, seed, runs) for seed in runs.seeds(f"{form}_{FREE}")]
        numbers = [DASH, mean(best, "step"), *means(columns, best)]
        lines.append([f"{TITLES[form]}, {BEST}", *numbers])
    start = ["run", "updates", "weights of update"]
    return {"summary": Table([*start, *(column.title for column in columns)], lines)}


def draw(rows: Rows, folder: Path) -> list[Path]:
    endings, runs, files = rows.where(kind="ending"), rows.runs, []

    def point(name: str, found: Sequence[Row], trail: Sequence[tuple[float, float]] = ()) -> Point:
        x, y = (mean_of(key, [row[key] for row in found]) for key in ("content", "photo_rate"))
        return Point(name, x, y, [trail] if trail else [])

    for form in dict.fromkeys(row["form"] for row in endings):
        free = f"{form}_{FREE}"
        seeds = runs.seeds(free)
        trail = [(row["content"], row["photo_rate"]) for row in runs.run(free, seeds[0])]
        points = [point("no early stopping, at the end", runs.last(free), trail)]
        points.append(point(BEST, [best_of(form, seed, runs) for seed in seeds]))
        for rule in (JUDGED, UNJUDGED):
            found = endings.where(kind="ending", form=form, rule=rule)
            points.append(point(RULES[rule][0], found))
        note = "Means over seeds, with 95 % intervals; the line is the first free run."
        file, title = folder / f"early_stopping_{form}.png", f"What is kept, {TITLES[form]}"
        files.append(plane(file, title, "content", "photo rate", points, note))
    return files
