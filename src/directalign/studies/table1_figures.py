"""The figures of `table1`: the way of every method through photo rate, drift and content; what it cost; all of them where they are equal."""

from __future__ import annotations

from .comparing.matching import at_same_level, base_row, interval_of, level_of_most
from .running.records import Number, Row, arms_of, of_run, seeds_of
from .showing import figures
from .showing.tables import number
from collections.abc import Sequence
from pathlib import Path


COLUMNS = (
    ("color_drift", "Colour drift", False, False),
    ("content", "Content", True, False),
    ("diversity", "Diversity", False, False),
    ("call_equivalents", "Network calls", False, True),
)


def draw(rows: list[Row], stem: Path) -> list[Path]:
    """Write `<stem>_trails.png`, `<stem>_cost.png` and, where most methods raise the photo rate, `<stem>_matched.png`."""
    drawn = [_trails(rows, _file(stem, "trails")), _cost(rows, _file(stem, "cost"))]
    level = level_of_most(rows, "photo_rate")
    return [*drawn, _matched(rows, level, _file(stem, "matched"))] if level > base_row(rows)["photo_rate"] else drawn


def _file(stem: Path, what: str) -> Path:
    return stem.with_name(f"{stem.name}_{what}.png")


def _trails(rows: list[Row], file: Path) -> Path:
    panels = [
        figures.Panel("Colour drift", "photo rate", "distance from photographs", _lines(rows, "photo_rate", "color_drift")),
        figures.Panel("Content kept", "photo rate", "share of images", _lines(rows, "photo_rate", "content"), percent=True),
    ]
    return figures.curves(file, "What each method pays for its photographs", panels, "Means over seeds, from the base model on")


def _cost(rows: list[Row], file: Path) -> Path:
    spent = [row for row in rows if row["call_equivalents"] > 0]
    panels = [
        figures.Panel("Photo rate", "network calls", "share of images", _lines(spent, "call_equivalents", "photo_rate"), percent=True, log_x=True),
        figures.Panel("Reward", "network calls", "score under the positive phrases", _lines(spent, "call_equivalents", "score_pos"), log_x=True),
    ]
    return figures.curves(file, "What each method costs", panels, "Means over seeds; a sample through the network counts one, its gradient two")


def _matched(rows: list[Row], level: Number, file: Path) -> Path:
    """All methods where their photo rate first reaches `level`."""
    equal, base, arms = at_same_level(rows, "photo_rate", level), base_row(rows), list(arms_of(rows))
    columns = [
        figures.Column(title, {arm: equal.interval(arm, key) for arm in arms}, percent, log, None if log else base.get(key))
        for key, title, percent, log in COLUMNS
    ]
    note = "Means over seeds with 95 % intervals; dashed: the base model"
    return figures.dots_with_intervals(file, f"All methods where they first reach a photo rate of {number(level, 2)}", columns, note)


def _lines(rows: Sequence[Row], x: str, y: str) -> list[figures.Line]:
    """One line per arm: at each measurement the means over its seeds."""
    lines = []
    for arm in arms_of(rows):
        points = [(interval_of(each, x), interval_of(each, y)) for each in _by_measurement(rows, arm)]
        known = [(across["value"], up["value"]) for across, up in points if across is not None and up is not None]
        lines.append(figures.Line(arm, [across for across, _ in known], [up for _, up in known]))
    return lines


def _by_measurement(rows: Sequence[Row], arm: str) -> list[tuple[Row, ...]]:
    """The first measurement of every seed, the second, ...: all seeds of an arm are measured at the same updates."""
    return list(zip(*(of_run(rows, arm, seed) for seed in seeds_of(rows, arm)), strict=True))
