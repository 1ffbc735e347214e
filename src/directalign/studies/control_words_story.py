"""What the study `control_words` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from ..toyworld.scenes import STYLE_WORDS
from .comparing.reading import at_step, before_training, curve, line, of_kind, of_runs, over, steps_of
from .comparing.versus import CALLS, QUALITY, Versus, after, at_photo_rate, common_photo_rate, excludes_zero, table, versus
from .running.records import Row, arms_of
from .showing.figures import Line, Panel, curves
from .showing.tables import markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


OFFICIAL, OURS = "official", ("suggested", "anchored")
TOP = 4
"""Candidates that are shown at each end of a ranking."""
LEVELS = (0.75, 0.9, 0.95)
"""Photo rates at which arms are compared, where all runs reach them."""


def tell(rows: list[Row]) -> str:
    """The rankings, the trainings, and both suggestions against the official ramps."""
    trained = of_runs(rows)
    against = [_against(trained, ours) for ours in OURS if ours in arms_of(trained)]
    return "\n\n".join([_rankings(of_kind(rows, "ranked")), _trained(trained), *against])


# --- rankings -----------------------------------------------------------------------------------------------------------


def own_words(ranked: Sequence[Row], style: str) -> list[int]:
    """The places, from 1, of the wanted style's own two words."""
    return sorted(row["place"] for row in of_kind(ranked, "ranked", arm=style) if row["phrase"] in STYLE_WORDS[style])


def unwanted_among_last(ranked: Sequence[Row], style: str) -> tuple[int, int]:
    """(how many of the six words of the other styles stand among as many last places, how many there are); parts of them count as them."""
    listed = of_kind(ranked, "ranked", arm=style)
    number_of = sum(row["phrase"] in words for row in listed for other, words in STYLE_WORDS.items() if other != style)
    last = sorted(listed, key=lambda row: row["place"])[-number_of:]
    return sum(row["names"] not in ("", style) for row in last), number_of


def _rankings(ranked: Sequence[Row]) -> str:
    styles, number_of = list(arms_of(ranked)), len({row["phrase"] for row in ranked})
    first = [style for style in styles if own_words(ranked, style) == [1, 2]]
    lines = []
    for style in styles:
        listed = sorted(of_kind(ranked, "ranked", arm=style), key=lambda row: row["place"])
        found, there = unwanted_among_last(ranked, style)
        ends = [", ".join(f"{row['phrase']} ({number(row['size'], 1)})" for row in part) for part in (listed[:TOP], listed[: -TOP - 1 : -1])]
        lines.append([style, " and ".join(map(str, own_words(ranked, style))), f"{found} of {there}", *ends])
    headers = ["wanted", "places of its own words", "other styles' words in the last places", "first (size of lift)", "last"]
    sentence = (
        f"Of {number_of} candidates the wanted style's own two words take the first two places for {len(first)} of {len(styles)} styles"
        f"{': ' + ', '.join(first) if first else ''}. A word that is part of a style's word counts as that style's."
    )
    return f"## Are the right words found?\n\n{sentence}\n\n{markdown(headers, lines)}"


# --- trainings ----------------------------------------------------------------------------------------------------------


def _trained(trained: Sequence[Row]) -> str:
    titles, parts = arms_of(trained), []
    for step in [step for step in steps_of(trained, OFFICIAL) if step > 0]:
        lines = [[title, *_numbers(at_step(trained, arm, step))] for arm, title in titles.items()]
        parts.append(f"After {step} updates:\n\n{markdown(['setting', *QUALITY.values(), 'network calls'], lines)}")
    return "\n\n".join(["## Trainings", *parts])


def _numbers(rows: Sequence[Row]) -> list[str]:
    calls = over(rows, "call_equivalents")
    return [*(with_interval(over(rows, key), 3) for key in QUALITY), number(calls["value"] if calls else None, 0)]


def _against(trained: Sequence[Row], ours: str) -> str:
    title = arms_of(trained)[ours]
    found = [versus(trained, ours, OFFICIAL, f"after {step} updates", after(step)) for step in steps_of(trained, ours) if step > 0]
    common, begun = common_photo_rate(trained, [ours, OFFICIAL]), before_training(trained)["photo_rate"]
    found += [versus(trained, ours, OFFICIAL, f"at photo rate {level:g}", at_photo_rate(level)) for level in LEVELS if begun < level <= common]
    sentence = f"{_verdict(found)} Differences are suggested minus official, ratios suggested over official, paired by seed. {CALLS}"
    return f"## {title[0].upper()}{title[1:]}, against the official ramps\n\n{sentence}\n\n{table(found)}"


def _verdict(found: Sequence[Versus]) -> str:
    better = [f"{QUALITY[key]} {each.condition}" for each in found for key in QUALITY if _sign(each, key) > 0]
    worse = [f"{QUALITY[key]} {each.condition}" for each in found for key in QUALITY if _sign(each, key) < 0]
    return f"Better beyond the interval in: {', '.join(better) or 'nothing'}. Worse beyond the interval in: {', '.join(worse) or 'nothing'}."


def _sign(found: Versus, key: str) -> int:
    """1 where ours is better beyond the interval, −1 where it is worse; drift is better when smaller."""
    difference = found.differences[key]
    if difference is None or not excludes_zero(difference):
        return 0
    return 1 if (difference["value"] < 0) == (key == "color_drift") else -1


# --- figures ------------------------------------------------------------------------------------------------------------


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The trainings as curves, and content over photo rate: the way that each setting takes."""
    trained = of_runs(rows)
    titles = arms_of(trained)
    panels = [
        Panel(title, "updates", title, [line(arm, curve(trained, arm, key)) for arm in titles], percent=key != "color_drift") for key, title in QUALITY.items()
    ]
    ways = Panel("content on the way to photos", "photo rate", "content", [_way(trained, arm) for arm in titles], percent=True)
    note = "Means over seeds, with 95 % intervals where there are several."
    short = {arm: arm for arm in titles}
    return [
        curves(folder / "control_words_curves.png", "Official ramps and what the reward's geometry suggests", [*panels, ways], note, columns=2, titles=short)
    ]


def _way(trained: Sequence[Row], arm: str) -> Line:
    means = zip(curve(trained, arm, "photo_rate"), curve(trained, arm, "content"), strict=True)
    return Line(arm, *map(list, zip(*((photo["value"], content["value"]) for (_, photo), (_, content) in means), strict=True)))
