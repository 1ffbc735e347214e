"""What the study `anchor` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from .anchor_cases import ANCHORED, rivals_of
from .comparing.reading import before_training, curve, line, of_kind, of_runs, over
from .comparing.statistics import SeedInterval, mean_of
from .comparing.versus import CALLS, after, at_photo_rate, common_photo_rate, excludes_zero, table, versus
from .running.records import Row, arms_of, of_run, seeds_of
from .showing.figures import Column, Panel, curves, dots_with_intervals
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


KEPT = 0.95
"""Share of the base model's content that counts as kept."""
FAILED = 0.9
"""Content below this is a failure."""
LENGTHS = (1, 2, 3, 10)
SHOWN = {"photo_rate": "photo rate", "content": "content", "color_drift": "colour drift"}


def tell(rows: list[Row]) -> str:
    """The anchor beside its rivals, every case at its lengths, where it fails, and the gaps of the words."""
    trained = of_runs(rows)
    return "\n\n".join([_beside_rivals(trained), _all_cases(trained), *_at_lengths(trained), _gaps(of_kind(rows, "gap"))])


# --- from the rows ----------------------------------------------------------------------------------------------------


def best_kept(run: Sequence[Row]) -> float:
    """The highest photo rate of a run at which it had `KEPT` of the base model's content; the base model itself counts."""
    begun = min(run, key=lambda row: row["step"])["content"]
    return max(row["photo_rate"] for row in run if row["content"] >= KEPT * begun)


def failed_at(run: Sequence[Row]) -> int | None:
    """The first measured update at which content was below `FAILED`; None if it never was."""
    return min((row["step"] for row in run if row["step"] > 0 and row["content"] < FAILED), default=None)


def best_of(trained: Sequence[Row], arm: str) -> SeedInterval:
    """`best_kept` over the arm's seeds."""
    return mean_of("photo_rate", [best_kept(of_run(trained, arm, seed)) for seed in seeds_of(trained, arm)])


def failures(trained: Sequence[Row], arm: str) -> list[int]:
    """`failed_at` of the seeds that failed."""
    found = [failed_at(of_run(trained, arm, seed)) for seed in seeds_of(trained, arm)]
    return [step for step in found if step is not None]


# --- told -------------------------------------------------------------------------------------------------------------


def _beside_rivals(trained: Sequence[Row]) -> str:
    titles = arms_of(trained)
    parts = ["## Beside its rivals", "Differences are anchored minus rival, ratios anchored over rival, paired by seed. " + CALLS]
    for rival in rivals_of(list(titles)):
        parts.append(_against(trained, rival, titles[rival]))
    return "\n\n".join(parts)


def _against(trained: Sequence[Row], rival: str, title: str) -> str:
    steps = _shared_steps(trained, rival)
    found = [versus(trained, ANCHORED, rival, f"after {step} updates", after(step)) for step in steps]
    level = common_photo_rate(trained, [ANCHORED, rival])
    if level > before_training(of_run(trained, ANCHORED, seeds_of(trained, ANCHORED)[0]))["photo_rate"]:
        found.append(versus(trained, ANCHORED, rival, f"at photo rate {level:.2f}", at_photo_rate(level)))
    won = [f"{SHOWN[key]} {each.condition}" for each in found for key in SHOWN if _is_better(each.differences[key], key)]
    lost = [f"{SHOWN[key]} {each.condition}" for each in found for key in SHOWN if _is_worse(each.differences[key], key)]
    verdict = f"Better than “{title}” beyond the interval in: {', '.join(won) or 'nothing'}. Worse beyond the interval in: {', '.join(lost) or 'nothing'}."
    return f"{verdict}\n\n{table(found)}"


def _shared_steps(trained: Sequence[Row], rival: str) -> list[int]:
    """The updates at whole lengths where both were measured."""
    lengths = {arm: {row["step"] for row in trained if row["arm"] == arm and row["length"] in LENGTHS} for arm in (ANCHORED, rival)}
    return sorted(lengths[ANCHORED] & lengths[rival])


def _is_better(difference: SeedInterval | None, key: str) -> bool:
    """Beyond its interval, and in the good direction: drift is better when it is smaller."""
    return difference is not None and excludes_zero(difference) and (difference["value"] < 0) == (key == "color_drift")


def _is_worse(difference: SeedInterval | None, key: str) -> bool:
    return excludes_zero(difference) and not _is_better(difference, key)


def _all_cases(trained: Sequence[Row]) -> str:
    titles = arms_of(trained)
    groups = {row["arm"]: row["group"] for row in trained}
    lines = [[titles[arm], groups[arm], *_case(trained, arm)] for arm in titles]
    headers = [
        "case",
        "group",
        "seeds",
        "lengths run",
        f"best photo rate with content ≥ {KEPT:g} of base",
        f"seeds below {FAILED:g} content",
        "first at update",
    ]
    return f"## When does it fail?\n\n{_failing(trained, titles)}\n\n{markdown(headers, lines)}"


def _case(trained: Sequence[Row], arm: str) -> list[str]:
    failed, seeds = failures(trained, arm), seeds_of(trained, arm)
    reach = max(row["length"] for row in trained if row["arm"] == arm)
    fell = [f"{len(failed)} of {len(seeds)}", number(min(failed), 0) if failed else DASH]
    return [number(len(seeds), 0), f"{number(reach, 0)}×", with_interval(best_of(trained, arm), 2), *fell]


def _failing(trained: Sequence[Row], titles: dict[str, str]) -> str:
    failed = {arm: failures(trained, arm) for arm in titles}
    told = [f"{titles[arm]} (from update {min(steps)}, {len(steps)} of {len(seeds_of(trained, arm))} seeds)" for arm, steps in failed.items() if steps]
    held = [titles[arm] for arm, steps in failed.items() if not steps]
    fell = f"Content fell below {FAILED:g} for: {'; '.join(told)}." if told else f"Content fell below {FAILED:g} nowhere."
    return f"{fell} It stayed above over the whole length for: {'; '.join(held)}." if held else f"{fell} No case stayed above over its whole length."


def _at_lengths(trained: Sequence[Row]) -> list[str]:
    """One table for each length that was run."""
    titles, parts = arms_of(trained), []
    for length in LENGTHS:
        lines = []
        for arm, title in titles.items():
            there = [row for row in trained if row["arm"] == arm and row["length"] == length]
            if there:
                lines.append([title, number(there[0]["step"], 0), *(with_interval(over(there, key), 3) for key in SHOWN)])
        if lines:
            parts.append(f"### At {length}× the recommended length\n\n{markdown(['case', 'updates', *SHOWN.values()], lines)}")
    return parts


def _gaps(gaps: Sequence[Row]) -> str:
    lines = [[row["title"], *(number(row[key], 3) for key in ("cosine", "gap_photo", "gap_cg", "cancelled"))] for row in gaps]
    headers = ["words", "cosine of the two texts", "pos − neg of true photographs", "pos − neg of true CG", "share of a red cast that cancels"]
    return "## Gaps of the words\n\nOne reward is embedded; a narrow and a wide gap are made by words, and their distance is measured.\n\n" + markdown(
        headers, lines
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The main cases over length as curves, and every case's best as dots."""
    trained = of_runs(rows)
    main = list(arms_of([row for row in trained if row["group"] == "main"]))
    panels = [_panel(trained, main, key, title) for key, title in SHOWN.items()]
    note = "Means over seeds, with 95 % intervals."
    first = curves(folder / "anchor_curves.png", "The anchored reward and its rivals, far beyond the recommended length", panels, note, columns=2)
    arms = list(arms_of(trained))
    note = f"Best: the highest photo rate with content at {KEPT:g} of the base model's or more; the dashed line is failure."
    columns = [
        Column("best photo rate", {arm: best_of(trained, arm) for arm in arms}, percent=True),
        Column("content at the end", {arm: _last(trained, arm, "content") for arm in arms}, percent=True, at=FAILED),
        Column("colour drift at the end", {arm: _last(trained, arm, "color_drift") for arm in arms}),
    ]
    return [first, dots_with_intervals(folder / "anchor_cases.png", "Every case: the best it gives, and where it ends", columns, note)]


def _panel(trained: Sequence[Row], arms: Sequence[str], key: str, title: str) -> Panel:
    return Panel(title, "updates", title, [line(arm, curve(trained, arm, key)) for arm in arms], percent=key != "color_drift")


def _last(trained: Sequence[Row], arm: str, key: str) -> SeedInterval:
    return mean_of(key, [of_run(trained, arm, seed)[-1][key] for seed in seeds_of(trained, arm)])
