"""The figures of `convergence`: judge and reward along three currencies, cost over SRPO's at each level, and the gradient by depth."""

from __future__ import annotations

from .comparing.matching import interval_of
from .comparing.reading import of_kind, of_runs
from .costs import LEVELS, ratio
from .depth import INJECTION, MODELS
from .running.arms import OURS
from .running.records import Row, arms_of, of_run, seeds_of
from .showing.figures import Column, Line, Panel, curves, dots_with_intervals
from .showing.tables import number
from collections.abc import Sequence
from pathlib import Path


CURRENCIES = {"call_equivalents": "network call equivalents", "seconds": "seconds of training", "step": "updates"}
JUDGED = {"photo_rate": ("Photo rate", True), "score_pos": ("Reward", False)}
COSTLIEST = "flow_grpo"


def draw(rows: list[Row], stem: Path) -> list[Path]:
    """Write `<stem>_curves.png`, `<stem>_cost.png` and `<stem>_depth.png`."""
    files = (stem.with_name(f"{stem.name}_{what}.png") for what in ("curves", "cost", "depth"))
    return [drawing(each, file) for (drawing, each), file in zip(((_curves, of_runs(rows)), (_cost, of_runs(rows)), (_depth, rows)), files, strict=True)]


# --- along the way ----------------------------------------------------------------------------------------------------


def _curves(rows: list[Row], file: Path) -> Path:
    panels = [
        Panel(title, currency, "", lines_of(rows, key, judged), percent, log_x=True, named=key == "step", span_y=(0, 1) if percent else None)
        for judged, (title, percent) in JUDGED.items()
        for key, currency in CURRENCIES.items()
    ]
    note = f"Means over {len(seeds_of(rows))} seed(s), 95 % intervals at the end; reward: under the positive words; a call with gradient counts three"
    return curves(file, "What the judge sees and what the reward says, by what it cost", panels, note, titles=arms_of(rows))


def lines_of(rows: Sequence[Row], x: str, y: str) -> list[Line]:
    """One line per arm: means over its seeds at every measurement but the first, which cost nothing and has no place on a logarithmic axis."""
    lines = []
    for arm in arms_of(rows):
        seeds = [[row for row in of_run(rows, arm, seed) if row[x] > 0] for seed in seeds_of(rows, arm)]
        found = [(interval_of(each, x), interval_of(each, y)) for each in zip(*seeds, strict=True)]
        known = [(across["value"], up) for across, up in found if across is not None and up is not None]
        ends = [(up["value"] if up["low"] is None else up["low"], up["value"] if up["high"] is None else up["high"]) for _, up in known]
        if known:
            lines.append(Line(arm, [across for across, _ in known], [up["value"] for _, up in known], [low for low, _ in ends], [high for _, high in ends]))
    return lines


# --- cost -------------------------------------------------------------------------------------------------------------


def _cost(rows: list[Row], file: Path) -> Path:
    rivals = [arm for arm in arms_of(rows) if arm != OURS]
    columns = [
        Column(f"{name} to {100 * level:g} %", {arm: ratio(rows, arm, OURS, key, level).interval for arm in rivals}, log=True, at=1)
        for key, name, levels in (("call_equivalents", "calls", LEVELS), ("seconds", "seconds", LEVELS[1:2]))
        for level in levels
    ]
    note = "Geometric means over the seeds that reach the photo rate, 95 % intervals; dashed: SRPO's own price"
    return dots_with_intervals(file, _cost_title(rows), columns, note, arms_of(rows))


def _cost_title(rows: list[Row]) -> str:
    """The message of the figure, from the highest level at which the costliest rival can be compared."""
    titles = arms_of(rows)
    for level in sorted(LEVELS, reverse=True):
        found = ratio(rows, COSTLIEST, OURS, "call_equivalents", level)
        if found.always and found.interval is not None:
            times = number(found.interval["value"], 0 if found.interval["value"] >= 10 else 1)
            return f"For a photo rate of {100 * level:g} %, {titles[COSTLIEST]} pays {times} times the network calls of {titles[OURS]}"
    return f"How many times the price of {titles[OURS]} each method pays for a photo rate"


# --- depth ------------------------------------------------------------------------------------------------------------


def _depth(rows: list[Row], file: Path) -> Path:
    chains = [row for row in of_kind(rows, "depth") if row["grad_steps"] != INJECTION]
    titles = {_group(row): f"{MODELS[row['model']][0]}, {row['num_sampling_steps']} steps" for row in chains}
    states = [row for row in of_kind(rows, "state") if row["depth"] >= 0]
    panels = [
        Panel("Time of an update", "steps with gradient, K", "times Direct-Align's", _by(chains, "grad_steps", "ratio"), log_x=True, log_y=True, named=False),
        Panel("Gradient of the weights", "steps with gradient, K", "norm", _by(chains, "grad_steps", "grad_norm"), log_x=True, log_y=True, named=False),
        Panel("Gradient at the state", "network calls before the image", "times that at the image", _by(states, "depth", "growth"), log_y=True),
    ]
    return curves(file, _depth_title(states), panels, "The same reward at the same weights, before training; 95 % intervals over batches", titles=titles)


def _depth_title(states: Sequence[Row]) -> str:
    most = max(states, key=lambda row: row["growth"])
    where = f"{MODELS[most['model']][0]}, {most['num_sampling_steps']} steps"
    return f"Back through sampling, the gradient grows up to {number(most['growth'], 1)}-fold ({where})"


def _group(row: Row) -> str:
    return f"{row['model']}-{row['num_sampling_steps']}"


def _by(rows: Sequence[Row], x: str, y: str) -> list[Line]:
    """One line per model and rollout, bands where their lower end can stand on a logarithmic axis."""
    lines = []
    for group in dict.fromkeys(_group(row) for row in rows):
        each = sorted((row for row in rows if _group(row) == group), key=lambda row: row[x])
        low, high = ([row[f"{y}_{end}"] for row in each] for end in ("low", "high"))
        banded = all(end is not None and end > 0 for end in low)
        lines.append(Line(group, [row[x] for row in each], [row[y] for row in each], low if banded else (), high if banded else ()))
    return lines
