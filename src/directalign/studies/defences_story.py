"""What the study `defences` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from .comparing.matching import Column, Matched, absent, at_same_level, matched, table
from .comparing.reading import before_training, curve, line, of_kind, of_runs
from .comparing.statistics import paired_over_seeds
from .comparing.versus import at_photo_rate, common_photo_rate, excludes_zero, signed
from .running.records import Row, arms_of, of_run, seeds_of
from .showing.figures import Panel, curves
from .showing.tables import DASH, markdown, number
from collections.abc import Sequence
from pathlib import Path


COLUMNS = (
    Column("color_drift", "colour drift"),
    Column("content", "content"),
    Column("held_out_raw_pos", "trained reward, nothing projected"),
    Column("held_out_second", "held-out reward"),
    Column("off_topic_held_out_raw_pos", "trained reward off topic, nothing projected"),
    Column("off_topic_color_drift", "colour drift off topic"),
    Column("off_topic_style_kept", "style kept off topic", digits=2),
)
PHOTO = Column("photo_rate", "photo rate", digits=2)
SOURCES = {"learned": "a hacked run", "probes": "tint and blur", "texts": "texts alone"}
PAIRS = (("plain_learned", "plain"), ("plain_probes", "plain"), ("plain_texts", "plain"), ("official_learned", "official"), ("agreement", "mixture"))
"""Which arm is a defence of which."""
HELD = ("shared", "wanted", "held", "gain", "explained")
COMPARED = {"color_drift": "colour drift", "content": "content", "held_out_second": "held-out reward", "off_topic_held_out_raw_pos": "leak"}
RATES = ("photo_rate", "content", "off_topic_style_kept")
READ = (
    "The highest that every run reaches; between measurements runs are straight lines. The held-out reward is the mixtures' second member: "
    "they are trained on it, and for them alone it proves nothing."
)
SHORT = {
    "plain_learned": "blind: learned",
    "plain_probes": "blind: tint, blur",
    "plain_texts": "blind: texts",
    "official": "official",
    "official_learned": "official, blind",
    "mixture": "two rewards",
    "agreement": "must agree",
}
"""Names of arms that fit beside a curve."""


def tell(rows: list[Row]) -> str:
    """What the directions hold, the arms at one photo rate, each defence against what it defends, and where all end."""
    trained = of_runs(rows)
    return "\n\n".join([_directions(of_kind(rows, "directions")), _at_equal_photo_rate(trained), _against(trained), _at_the_end(trained)])


def _directions(facts: Sequence[Row]) -> str:
    lines = [[SOURCES[row["arm"]], number(row["directions"], 0), *(number(row[key], 3) for key in HELD)] for row in facts]
    headers = ["learned from", "directions", "shared", "kept back", "held", "reward gained", "of it along the directions"]
    told = (
        "Shares of the mean squared shift of image features (of texts: of what they pull towards): what all images share, what lies along the "
        "wanted difference and is kept back, and what the directions hold."
    )
    return f"## What the directions hold\n\n{told}\n\n{markdown(headers, lines)}"


def _at_equal_photo_rate(trained: Sequence[Row]) -> str:
    titles, level = arms_of(trained), common_photo_rate(trained, list(arms_of(trained)))
    found = at_same_level(trained, "photo_rate", level)
    missing = absent(found, titles, len(seeds_of(trained)))
    heading = f"## At a photo rate of {number(level)}\n\n{READ} {missing}".rstrip()
    return f"{heading}\n\n{_table(found, titles, COLUMNS, trained)}"


def _against(trained: Sequence[Row]) -> str:
    """Each defence less what it defends, seed by seed, at the highest photo rate that both reach."""
    there = arms_of(trained)
    pairs = [(ours, theirs) for ours, theirs in PAIRS if ours in there and theirs in there]
    lines = [_line(trained, ours, theirs) for ours, theirs in pairs]
    headers = ["defence, against what it defends", "at photo rate", *COMPARED.values()]
    sentences = [_verdict(trained, ours, theirs) for ours, theirs in pairs]
    return f"## What each defence changes\n\n{' '.join(sentences)}\n\n{markdown(headers, lines)}"


def _line(trained: Sequence[Row], ours: str, theirs: str) -> list[str]:
    titles, level = arms_of(trained), common_photo_rate(trained, (ours, theirs))
    return [f"{titles[ours]}, against {titles[theirs]}", number(level), *(_difference(trained, ours, theirs, key)[0] for key in COMPARED)]


def _difference(trained: Sequence[Row], ours: str, theirs: str, key: str) -> tuple[str, bool]:
    """`ours − theirs` as text, and whether it may be 0 by its interval."""
    pick = at_photo_rate(common_photo_rate(trained, (ours, theirs)))
    both = [seed for seed in seeds_of(trained, ours) if seed in seeds_of(trained, theirs)]
    read = [(pick(of_run(trained, ours, seed)), pick(of_run(trained, theirs, seed))) for seed in both]
    known = [(a[key], b[key]) for a, b in read if a is not None and b is not None and key in a and key in b]
    if not known:
        return DASH, True
    found = paired_over_seeds([a for a, _ in known], [b for _, b in known])
    return signed(found), found["low"] is not None and not excludes_zero(found)


def _verdict(trained: Sequence[Row], ours: str, theirs: str) -> str:
    text, doubtful = _difference(trained, ours, theirs, "color_drift")
    tail = ", an interval that does not exclude 0" if doubtful else ""
    return f"“{arms_of(trained)[ours]}” changes the colour drift of “{arms_of(trained)[theirs]}” by {text} where both have come equally far{tail}."


def _at_the_end(trained: Sequence[Row]) -> str:
    titles = arms_of(trained)
    return f"## After all updates\n\n{_table(matched(trained, lambda run: run[-1]), titles, (PHOTO, *COLUMNS), trained)}"


def _table(found: Matched, titles: dict[str, str], columns: Sequence[Column], trained: Sequence[Row]) -> str:
    return table(found, titles, columns, before_training(trained))


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Photo rate, drift and what was never trained on, over the updates."""
    trained = of_runs(rows)
    shown = [PHOTO, *COLUMNS[:2], COLUMNS[3], COLUMNS[4], COLUMNS[6]]
    panels = [
        Panel(column.title, "updates", column.title, [line(arm, curve(trained, arm, column.key)) for arm in arms_of(trained)], percent=column.key in RATES)
        for column in shown
    ]
    note = "Means over seeds, with 95 % intervals."
    return [curves(folder / "defences_curves.png", "Defences against a reward with a taste for red", panels, note, columns=2, titles=SHORT)]
