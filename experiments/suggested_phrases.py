"""Control phrases and ramps as `directalign reward phrases` suggests them.

Every style of the toy world is the wanted one in turn, with thirty candidate phrases; and SRPO is
trained with the official ramps, the suggested ramp and the suggested anchor.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from directalign.config.load import load_run
from directalign.reward_analysis import COMMON
from directalign.reward_analysis.images import load_examples
from directalign.reward_analysis.phrases import PhraseTable, Suggestion, settings_for
from directalign.reward_analysis.phrases_report import ramp
from directalign.rewards import load_reward
from directalign.toyworld.scenes import STYLE_WORDS, STYLES

from .plots import Line, Panel, curves, panels_over_updates
from .rows import Row, Rows, at_photo_rate
from .runner import Arm, piece, run_arms, settings_of, sized
from .tables import MEASURED, VERSUS, Column, Table, means, number, versus

SEEDS = (0, 1, 2)
RECIPE, ANCHORED = "world_official", "world_srpo"
COUNT, QUICK_COUNT = 96, 8
UPDATES, EVERY = 60, 10
SHOWN_UPDATES = (20, 40, 60)
LEVELS = (0.75, 0.9, 0.95)
"""Photo rates at which arms are compared, where all runs reach them."""
RANKING = (
    "wanted | places of its own words | other styles' words in the last places | first (lift) | "
    "last (lift)"
)
TOP = 4
"""Candidates that are shown at each end of a ranking."""


def measure(out: Path, quick: bool) -> list[Row]:
    """Train the arms, rank the candidates for every style; quick: two arms, one seed, one style."""
    length = (f"train.num_steps={UPDATES}", f"evaluate.every={EVERY}")
    longer = [replace(arm, overrides=(*length, *arm.overrides)) for arm in arms()]
    chosen, seeds = (longer[:2], SEEDS[:1]) if quick else (longer, SEEDS)
    rows = run_arms("suggested_phrases", sized(chosen, quick), seeds, out)
    settings = settings_of(Arm("ranking", "ranking", RECIPE), 0)
    styles, count = (STYLES[:1], QUICK_COUNT) if quick else (STYLES, COUNT)

    def make() -> list[Row]:
        return [row for style in styles for row in ranked(style, count)]

    return rows + piece(out, "ranked", settings, make)


def arms() -> list[Arm]:
    """Official ramps, the suggested ramp in both branches, the suggested anchor."""
    found = suggested()
    assert found.mu is not None and found.tolerance is not None
    mu, tolerance = round(found.mu, 2), f"method.anchor.tolerance={found.tolerance}"
    ramps = json.dumps(ramp(mu))
    both = (f"method.denoise={ramps}", f"method.inversion={ramps}")
    title = f"suggested ramp, k_pos − k_neg from 0 to {2 * mu:g}"
    anchor = f"suggested anchor, tolerance {found.tolerance:g}"
    return [
        Arm("official", "official ramps", RECIPE),
        Arm("suggested", title, RECIPE, both),
        Arm("anchored", anchor, ANCHORED, (tolerance,)),
    ]


@cache
def suggested() -> Suggestion:
    """Ramp and tolerance for the recipe's own phrases, photographs against all other styles."""
    words = load_run(RECIPE).method.control_phrases
    return settings_for(_table("photo", COUNT), words.positive, words.negative)


def _table(style: str, count: int) -> PhraseTable:
    reward = load_reward(load_run(RECIPE).reward)
    images = load_examples(f"world:{style}/rest", "images", count=count)
    return PhraseTable(reward, images)


def ranked(style: str, count: int) -> list[Row]:
    """One row per candidate, from the most wanted to the most unwanted, when `style` is wanted."""
    table, rows = _table(style, count), []
    words = sorted((table.phrase(phrase) for phrase in COMMON), key=lambda word: -word.lift.size)
    for place, word in enumerate(words, start=1):
        named = {"study": "suggested_phrases", "kind": "ranked", "arm": style, "title": style}
        named |= {"seed": 0, "phrase": word.phrase, "place": place, "names": named_by(word.phrase)}
        lift = {"lift": word.lift.value, "lift_low": word.lift.low, "lift_high": word.lift.high}
        lift |= {"size": word.lift.size, "content": word.content, "cut": word.cut}
        rows.append({**named, **lift})
    return rows


def named_by(phrase: str) -> str:
    """The style of whose words the phrase is one or a part ("Render" of "CG render"), or ""."""
    parts = set(phrase.casefold().split())
    for style, words in STYLE_WORDS.items():
        if any(parts <= set(word.casefold().split()) for word in words):
            return style
    return ""


def unwanted_among_last(listed: list[Row], style: str) -> tuple[int, int]:
    """(how many of the last places the other styles' words take, how many such words there are)."""
    others = {word for other in STYLES if other != style for word in STYLE_WORDS[other]}
    count = sum(row["phrase"] in others for row in listed)
    last = sorted(listed, key=lambda row: row["place"])[-count:]
    return sum(row["names"] not in ("", style) for row in last), count


def tables(rows: Rows) -> dict[str, Table]:
    runs = rows.runs
    titles, rankings, trainings, against = runs.arms, [], [], []
    for style in rows.where(kind="ranked").arms:
        listed = sorted(rows.where(kind="ranked", arm=style), key=lambda row: row["place"])
        own = [row["place"] for row in listed if row["phrase"] in STYLE_WORDS[style]]
        found, there = unwanted_among_last(listed, style)
        ends = [
            ", ".join(f"{row['phrase']} ({number(row['size'], 1)})" for row in part)
            for part in (listed[:TOP], listed[: -TOP - 1 : -1])
        ]
        rankings.append([style, " and ".join(map(str, own)), f"{found} of {there}", *ends])
    columns = (*MEASURED, Column("call_equivalents", "NFE equivalents", 0, interval=False))
    for step in SHOWN_UPDATES:
        for arm, title in titles.items():
            there = runs.at(arm, step)
            if there:
                trainings.append([str(step), title, *means(columns, there)])
    begun = runs.base["photo_rate"]
    for ours in (arm for arm in titles if arm != "official"):
        common = runs.highest_common([ours, "official"])
        conditions = {f"{x:g}": at_photo_rate(x) for x in LEVELS if begun < x <= common}
        for level, _, *cells, _ in versus(runs, ours, "official", conditions):
            against.append([titles[ours].partition(",")[0], level, *cells])
    official = ["setting, minus official ramps", "at photo rate", *VERSUS[2:-1]]
    return {
        "ranking": Table(RANKING.split(" | "), rankings),
        "trainings": Table(["updates", "setting", *(c.title for c in columns)], trainings),
        "matched_photo_rate": Table(official, against),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs = rows.runs
    arms = list(runs.arms)
    panels, ways = panels_over_updates(runs, arms), []
    for photo, content in zip(panels[0].lines, panels[1].lines, strict=True):
        ways.append(Line(photo.name, photo.y, content.y))
    panels.append(Panel("content over photo rate", "photo rate", "content", ways, percent=True))
    file, title = folder / "suggested_phrases_curves.png", "Official ramps and suggested settings"
    note = "Means over seeds, with 95 % intervals where there are several."
    return [curves(file, title, panels, note, columns=2, titles={arm: arm for arm in arms})]
