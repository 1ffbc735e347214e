"""Where in the trajectory to train: early (high noise), late (low noise) or everywhere, and which of the three looks most hacked.

Both reward forms, every window with moves of one gain, so that no window is favoured by its share of the image; same updates.
"""

from __future__ import annotations

from . import hacking
from .comparing.reading import before_training, curve, ends, line, of_kind, of_runs, over
from .comparing.statistics import SeedInterval
from .comparing.versus import at_photo_rate, common_photo_rate
from .running.experiment import folder_of as run_folder
from .running.experiment import run_arms, settings_of
from .running.looking import measurer_of
from .running.pieces import piece
from .running.records import Arm, Row, of_run, seeds_of
from .running.sizes import sized
from .showing.figures import Column, Panel, curves, dots_with_intervals
from .showing.tables import markdown, with_interval
from collections.abc import Sequence
from pathlib import Path
import torch


NAME = "timesteps"
TITLE = "Early, late or full window: which training looks most hacked"
QUESTION = (
    "The paper trains on early (high noise), late (low noise) and all levels and finds that late training looks most hacked in 77 % of the prompts. "
    "Here plain Direct-Align and SRPO each train in the three windows with equally many updates. For every prompt and seed the three images are compared by "
    "judges that no training saw: most hacked is the image that lost the prompt's content, and among equals the one that moved farthest from a true photograph "
    "of the prompt in colour cast, saturation and sharpness, counted from where the base model's image stood."
)
PAPER_LATE = 0.77
SEEDS = (0, 1, 2)
GAIN = 0.15
WINDOWS = {"early": (0.98, 0.75), "late": (0.25, 0.02), "full": (0.98, 0.02)}
"""(highest, lowest) noise level where moves land: a quarter of the scale at either end, or all of it."""
FORMS = {"absolute": ("Direct-Align", "world_direct_align"), "relative": ("SRPO", "world_official")}


def arms_of_form(form: str) -> list[Arm]:
    """One arm per window."""
    title, recipe = FORMS[form]
    return [Arm(f"{form}_{window}", f"{title}, {window}", recipe, (_moves(*WINDOWS[window]),)) for window in WINDOWS]


def _moves(high: float, low: float) -> str:
    return f"method.moves={{kind: constant_gain, sigma_high: {high}, sigma_low: {low}, gain: {GAIN}}}"


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train every form in every window, then compare the images of the three windows; quick: plain Direct-Align alone, one seed."""
    rows: list[Row] = []
    seeds = SEEDS[:1] if quick else SEEDS
    for form in list(FORMS)[: 1 if quick else None]:
        arms = sized(arms_of_form(form), quick)
        rows += run_arms(NAME, arms, seeds, out, recipes)
        for seed in seeds:
            folders = {arm.name: run_folder(arm, seed, out) for arm in arms}
            titles = {arm.name: arm.title for arm in arms}
            settings = settings_of(arms[0], seed, recipes)
            rows += piece(
                out, f"{form}-seed{seed}", settings, lambda form=form, seed=seed, folders=folders, titles=titles: _hacking(form, seed, folders, titles)
            )
    return rows


def _hacking(form: str, seed: int, folders: dict[str, Path], titles: dict[str, str]) -> list[Row]:
    """One row per window: the share of pairs in which it looks most hacked, and means of what that was told by."""
    base = _seen(next(iter(folders.values())), base=True)
    seen = {arm: _seen(folder) for arm, folder in folders.items()}
    beyond = {arm: hacking.excess_drift(each, {name: base[name] for name in hacking.DISTANCES}) for arm, each in seen.items()}
    shares = hacking.most_hacked(torch.stack([each["lost"] for each in seen.values()]), torch.stack(list(beyond.values())))
    named = {"study": NAME, "kind": "hacking", "form": form, "seed": seed}
    return [
        {**named, "arm": arm, "title": titles[arm], "share": share.mean().item(), "drift": beyond[arm].mean().item(), "pairs": len(share), **_means(seen[arm])}
        for arm, share in zip(folders, shares.double(), strict=True)
    ]


def _seen(folder: Path, base: bool = False) -> dict[str, torch.Tensor]:
    measurer = measurer_of(folder, base)
    return hacking.seen_by(measurer, measurer.images(len(measurer.pairs)))


def _means(seen: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.double().mean().item() for name, value in seen.items()}


# --- told -------------------------------------------------------------------------------------------------------------


def tell(rows: list[Row]) -> str:
    """Who looks most hacked, form by form, and the same windows where all three reach one photo rate."""
    return "\n\n".join(_tell_form(rows, form) for form in FORMS if of_kind(rows, "hacking", form=form))


def _tell_form(rows: list[Row], form: str) -> str:
    judged, trained = of_kind(rows, "hacking", form=form), of_runs(rows)
    arms = list(dict.fromkeys(row["arm"] for row in judged))
    parts = [f"## {FORMS[form][0]}", _verdict(judged), _at_the_end(judged, trained, arms), _matched(trained, arms)]
    return "\n\n".join(part for part in parts if part)


def _shares(judged: Sequence[Row]) -> dict[str, SeedInterval]:
    """Share of pairs by window, most hacked first."""
    titles = list(dict.fromkeys(row["arm"] for row in judged))
    found = {arm: over([row for row in judged if row["arm"] == arm], "share") for arm in titles}
    return dict(sorted(((arm, share) for arm, share in found.items() if share is not None), key=lambda item: -item[1]["value"]))


def _verdict(judged: Sequence[Row]) -> str:
    shares = _shares(judged)
    worst, late = next(iter(shares)), next(arm for arm in shares if arm.endswith("_late"))
    pairs = judged[0]["pairs"]
    opening = f"Trained in the {_window(worst)} window the model looks most hacked: in {with_interval(shares[worst], 0, percent=True)} of {pairs} pairs"
    chance = "" if _above_chance(shares[worst]) else ", an interval that does not exclude the third that chance would give"
    if worst == late:
        return f"{opening}{chance}; the paper reports {_percent(PAPER_LATE)} for the late window."
    return (
        f"{opening}{chance}. The late window, which the paper finds worst in {_percent(PAPER_LATE)}, is so in {with_interval(shares[late], 0, percent=True)}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _above_chance(share: SeedInterval) -> bool:
    return share["low"] is not None and share["low"] > 1 / len(WINDOWS)


def _window(arm: str) -> str:
    return arm.rsplit("_", 1)[1]


def _at_the_end(judged: Sequence[Row], trained: Sequence[Row], arms: Sequence[str]) -> str:
    headers = ["window", "noise levels", "most hacked", "content lost", "drift beyond base", "photo rate", "colour drift", "reward"]
    lines = []
    for arm in arms:
        mine, last, (high, low) = [row for row in judged if row["arm"] == arm], ends(trained, arm), WINDOWS[_window(arm)]
        judged_of = [with_interval(over(mine, "share"), 0, percent=True), with_interval(over(mine, "lost"), 3), with_interval(over(mine, "drift"), 2)]
        trained_of = [with_interval(over(last, key), 3) for key in ("photo_rate", "color_drift", "reward")]
        lines.append([_window(arm), f"{low:g} to {high:g}", *judged_of, *trained_of])
    return "At equally many updates:\n\n" + markdown(headers, lines)


def _matched(trained: Sequence[Row], arms: Sequence[str]) -> str:
    level = common_photo_rate(trained, arms)
    if level <= before_training(trained)["photo_rate"]:
        return "One of the windows never raises the photo rate, so there is no level at which all three could be compared."
    lines = []
    for arm in arms:
        there = [row for seed in seeds_of(trained, arm) if (row := at_photo_rate(level)(of_run(trained, arm, seed))) is not None]
        lines.append([_window(arm), *(with_interval(over(there, key), digits) for key, digits in (("step", 0), ("content", 3), ("color_drift", 3)))])
    return f"Where each first reaches a photo rate of {level:.2f}, the highest that all reach:\n\n" + markdown(
        ["window", "updates", "content", "colour drift"], lines
    )


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The shares with their parts as dots, and the trainings as curves."""
    judged = of_kind(rows, "hacking")
    arms = list(dict.fromkeys(row["arm"] for row in judged))
    by_arm = {arm: [row for row in judged if row["arm"] == arm] for arm in arms}
    columns = [
        Column("most hacked", {arm: over(by_arm[arm], "share") for arm in arms}, percent=True, at=1 / len(WINDOWS)),
        Column("content lost", {arm: over(by_arm[arm], "lost") for arm in arms}, percent=True),
        Column("drift beyond base", {arm: over(by_arm[arm], "drift") for arm in arms}),
    ]
    dots = dots_with_intervals(
        folder / f"{NAME}_hacking.png", "Which window looks most hacked", columns, "Share of prompt-seed pairs; the dashed line is chance."
    )
    panels = [_panel(rows, arms, key, title) for key, title in (("photo_rate", "photo rate"), ("content", "content"), ("color_drift", "colour drift"))]
    return [dots, curves(folder / f"{NAME}_curves.png", "Training in three windows", panels, "Means over seeds.")]


def _panel(rows: list[Row], arms: Sequence[str], key: str, title: str) -> Panel:
    lines = [line(arm, curve(of_runs(rows), arm, key), banded=False) for arm in arms]
    return Panel(title, "updates", title, lines, percent=key != "color_drift", named=key == "color_drift")
