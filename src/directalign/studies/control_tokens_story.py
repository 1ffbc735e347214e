"""What the study `control_tokens` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from .comparing.reading import before_training, curve, ends, line, of_kind, of_runs, over
from .comparing.statistics import SeedInterval, mean_interval, mean_of, paired_over_seeds
from .comparing.versus import signed
from .running.records import Row, arms_of, of_run, seeds_of
from .showing.figures import Panel, curves
from .showing.tables import markdown, with_interval
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path


NAME = "control_tokens"
LOSSES = (0.02, 0.05, 0.1)
"""Shares of the base model's content that may be lost."""
WORDS = "words"
READ = {"style": 3, "separated": 2, "content": 3, "bias": 2}
"""Numbers of a fit, and the places they are printed with."""


def tell(rows: list[Row]) -> str:
    """What the tokens were fitted for, and what they reach beside the words."""
    trained = of_runs(rows)
    return "\n\n".join([_asked(rows), *(_reached(trained, form) for form in forms_of(trained))])


def forms_of(trained: Sequence[Row]) -> list[str]:
    """The forms of the reward that were trained, in their order."""
    return list(dict.fromkeys(arm.rpartition("_")[2] for arm in arms_of(trained)))


def best_within(run: Sequence[Row], loss: float) -> float:
    """The highest photo rate of a run while it had lost no more than `loss` of the base model's content; the base model counts.

    Between measurements a run is a straight line, as everywhere here: it is read off where it crosses the loss, too.
    """
    level = (1 - loss) * before_training(run)["content"]
    kept = [row["photo_rate"] for row in run if row["content"] >= level]
    for before, after in pairwise(sorted(run, key=lambda row: row["step"])):
        if (before["content"] >= level) != (after["content"] >= level):
            share = (level - before["content"]) / (after["content"] - before["content"])
            kept.append(before["photo_rate"] + share * (after["photo_rate"] - before["photo_rate"]))
    return max(kept)


def best_of(trained: Sequence[Row], arm: str, loss: float) -> list[float]:
    """`best_within` of the arm's seeds."""
    return [best_within(of_run(trained, arm, seed), loss) for seed in seeds_of(trained, arm)]


def _asked(rows: Sequence[Row]) -> str:
    fits = of_kind(rows, "fit")
    names = {row["arm"]: row["title"] for row in fits}
    lines = [[title, *(with_interval(_once(fits, name, key), digits) for key, digits in READ.items())] for name, title in names.items()]
    headers = ["pos − neg of", "style gap", "separated", "content gap", "bias over style"]
    text = (
        "On pictures that the fit did not see: how far pos − neg lies higher on photos than on other styles of the same caption, in which share of the pairs, "
        "how far it lies higher on a caption's own pictures than on others, and how much tints, light, saturation and blur move it."
    )
    return f"## What the tokens say\n\n{text}\n\n{markdown(headers, lines)}"


def _once(fits: Sequence[Row], name: str, key: str) -> SeedInterval:
    """A number over seeds; the words, measured beside every fit, count once a seed."""
    return mean_interval([row[key] for row in {row["seed"]: row for row in fits if row["arm"] == name}.values()])


def _reached(trained: Sequence[Row], form: str) -> str:
    titles = {arm: title for arm, title in arms_of(trained).items() if arm.endswith(f"_{form}")}
    words = f"{WORDS}_{form}"
    lines = [[title, *_line(trained, arm)] for arm, title in titles.items()]
    headers = [
        "reward",
        *(f"photo rate within {100 * loss:g} % content loss" for loss in LOSSES),
        "photo rate at the end",
        "content at the end",
        "colour drift",
    ]
    verdicts = [_verdict(trained, arm, words, title) for arm, title in titles.items() if arm != words]
    return f"## {form.capitalize()} reward\n\n{' '.join(verdicts)}\n\n{markdown(headers, lines)}"


def _line(trained: Sequence[Row], arm: str) -> list[str]:
    best = [with_interval(mean_of("photo_rate", best_of(trained, arm, loss))) for loss in LOSSES]
    last = ends(trained, arm)
    return [*best, with_interval(over(last, "photo_rate")), with_interval(over(last, "content")), with_interval(over(last, "color_drift"), 3)]


def _verdict(trained: Sequence[Row], arm: str, words: str, title: str) -> str:
    """Tokens minus words at each loss, paired by seed."""
    found = {loss: paired_over_seeds(best_of(trained, arm, loss), best_of(trained, words, loss)) for loss in LOSSES}
    told = ", ".join(f"{signed(difference, 2)} within {100 * loss:g} %" for loss, difference in found.items())
    reach = [f"{100 * loss:g} %" for loss, difference in found.items() if difference["value"] >= 0]
    reached = f"at least the words' photo rate on average within {', '.join(reach)}" if reach else "less than the words' photo rate at every loss"
    return f"“{title}” reach {reached} (tokens minus words: {told})."


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Photo rate and content along the updates, one sheet a form."""
    trained = of_runs(rows)
    titles = arms_of(trained)
    files = []
    for form in forms_of(trained):
        arms = [arm for arm in titles if arm.endswith(f"_{form}")]
        panels = [
            Panel(title, "updates", "", [line(arm, curve(trained, arm, key), banded=False) for arm in arms], percent=key != "color_drift")
            for key, title in (("photo_rate", "Photo rate"), ("content", "Content kept"), ("color_drift", "Colour drift"))
        ]
        short = {arm: titles[arm].partition(",")[0] for arm in arms}
        note = f"{form.capitalize()} reward, means over seeds ({len(seeds_of(trained))})."
        files.append(curves(folder / f"{NAME}_{form}.png", f"Words and learned tokens, {form} reward", panels, note, titles=short))
    return files
