"""What the study `compared` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from ..stats import wilson_interval
from .comparing.reading import of_kind
from .comparing.statistics import mean_of
from .running.records import Row, arms_of
from .showing.figures import Column, Line, Panel, curves, dots_with_intervals
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


NUMBERS = {"photo_rate": "photo rate", "content": "content", "score_second": "held-out reward", "base_color_shift": "colour shift from the base"}
DUELS = (("base", "direct_align"), ("base", "refl"), ("base", "srpo"), ("direct_align", "srpo"), ("refl", "srpo"))
OF = {"rate": "rate", "difference": "difference of two", "win": "win rate"}
OF_VOTES = {"strength": "strength", "strength difference": "difference of strengths", "win": "win rate"}
SHORT = {"by_image": "8 seeds, by image"}
"""Names that fit beside a picture."""
PROMISED, ALLOWED = 0.95, 0.05
FAMILY = "all"


def tell(rows: list[Row]) -> str:
    """Who wins on the world, then what the comparison's own statistics are worth, then those of the arena."""
    return "\n\n".join([_models(of_kind(rows, "model")), _duels(of_kind(rows, "wins")), _coverage(rows), _tests(rows), _votes(rows)])


# --- on the world -----------------------------------------------------------------------------------------------------


def _models(rows: Sequence[Row]) -> str:
    lines = [[title, *(_over_seeds(rows, arm, name) for name in NUMBERS)] for arm, title in arms_of(rows).items()]
    return f"## The models\n\nMeans over seeds, with 95 % intervals over seeds.\n\n{markdown(['model', *NUMBERS.values()], lines)}"


def _over_seeds(rows: Sequence[Row], arm: str, name: str) -> str:
    values = [row["value"] for row in rows if (row["arm"], row["number"]) == (arm, name)]
    return with_interval(mean_of(name, values), 3) if values else DASH


def _duels(rows: Sequence[Row]) -> str:
    titles = {"base": "base model", **arms_of(rows)}
    lines = [[f"{titles[b]} against {titles[a]}", *(_duel(rows, a, b, name) for name in NUMBERS)] for a, b in DUELS if a in titles and b in titles]
    told = (
        "Share of pairs (same prompt, same seed) that the first of the two wins, a tie half a win: the mean over seeds, from the lowest to the highest end "
        "of the seeds' own 95 % intervals. Behind it, in how many seeds' comparisons the sign test speaks, corrected for all pairs and numbers (Holm)."
    )
    return f"## Who wins\n\n{told}\n\n{markdown(['of two models', *NUMBERS.values()], lines)}"


def _duel(rows: Sequence[Row], a: str, b: str, name: str) -> str:
    found = [row for row in rows if (row["a"], row["b"], row["name"]) == (a, b, name)]
    if not found:
        return DASH
    clear = sum(row["p_holm"] < ALLOWED for row in found)
    return f"{with_interval(hull(found))}, {clear} of {len(found)}"


def hull(found: Sequence[Row]) -> Row:
    """The mean value, between the lowest and the highest end of several intervals."""
    low, high = min(row["low"] for row in found), max(row["high"] for row in found)
    return {"value": sum(row["value"] for row in found) / len(found), "low": low, "high": high, "n": sum(row["n"] for row in found)}


# --- where the truth is known -----------------------------------------------------------------------------------------


def share(row: Row, key: str) -> Row:
    """How often something happened in simulations, with its own 95 % interval."""
    return wilson_interval(row[key] / row["simulated"], row["simulated"]).as_dict()


def _coverage(rows: Sequence[Row]) -> str:
    found, judges = of_kind(rows, "coverage"), of_kind(rows, "judge")
    headers = ["planted", "number", *OF.values()]
    lines = []
    for arm, title in arms_of(found).items():
        for name in dict.fromkeys(row["number"] for row in found):
            of = {row["of"]: row for row in found if (row["arm"], row["number"]) == (arm, name)}
            lines.append([title, NUMBERS[name], *(with_interval(share(of[key], "covered"), 1, percent=True) for key in OF)])
    wrong = sum(row["seen"] if row["drawn"] == 0 else row["renders"] - row["seen"] for row in judges)
    told = (
        f"How often the 95 % interval of a comparison held the truth that the renderer knows, with the binomial interval of so many simulations. "
        f"The judges misread {wrong} of {sum(row['renders'] for row in judges)} answers about the renders."
    )
    return f"## Do the intervals hold the truth?\n\n{told}\n\n{verdict(found)}\n\n{markdown(headers, lines)}"


def verdict(found: Sequence[Row]) -> str:
    """How many kinds of interval hold what they promise, as far as so many simulations can tell; those counted by image are told apart."""
    sides = {"by prompts": [row for row in found if row["arm"] != "by_image"], "by images": [row for row in found if row["arm"] == "by_image"]}
    return " ".join(f"Counted {what}, {_held(rows)}." for what, rows in sides.items() if rows)


def _held(rows: Sequence[Row]) -> str:
    shares = [share(row, "covered") for row in rows]
    rarely, often = sum(each["high"] < PROMISED for each in shares), sum(each["low"] > PROMISED for each in shares)
    return f"{rarely} of {len(rows)} hold it too rarely and {often} more often than promised; {_least(rows)}"


def _least(rows: Sequence[Row]) -> str:
    """The interval that held the truth least often."""
    least = min(rows, key=lambda row: row["covered"] / row["simulated"])
    what = {**OF, **OF_VOTES}[least["of"]] + (f", {NUMBERS[least['number']]}" if "number" in least else "")
    return f"the least is {number(100 * share(least, 'covered')['value'], 1)} % ({least['title']}, {what})"


def _tests(rows: Sequence[Row]) -> str:
    found, curve = of_kind(rows, "test"), of_kind(rows, "power")
    nothing = [row for row in found if abs(row["effect"]) < 1e-12]
    named = {**NUMBERS, FAMILY: "any number, corrected"}
    lines = [[row["title"], named[row["number"]], with_interval(share(row, "spoke"), 1, percent=True)] for row in nothing]
    size = "Where two models are equal, the sign test should speak in at most 5 % of comparisons."
    effects = sorted({row["effect"] for row in curve})
    seen = [[title, *(_power(curve, arm, effect) for effect in effects)] for arm, title in arms_of(curve).items()]
    told = "And so often it sees a difference of photo rates, by the number of prompts, with two images of each:"
    headers = ["", *(f"{number(100 * effect, 0)} points" for effect in effects)]
    return f"## The sign test\n\n{size}\n\n{markdown(['planted', 'number', 'speaks'], lines)}\n\n{told}\n\n{markdown(headers, seen)}"


def _power(curve: Sequence[Row], arm: str, effect: float) -> str:
    row = next(row for row in curve if (row["arm"], row["effect"]) == (arm, effect))
    return f"{number(100 * share(row, 'spoke')['value'], 1)} %"


def _votes(rows: Sequence[Row]) -> str:
    found, tests = of_kind(rows, "votes"), of_kind(rows, "votes test")
    lines = []
    for arm, title in arms_of(found).items():
        of = {row["of"]: row for row in found if row["arm"] == arm}
        spoke = {row["number"]: with_interval(share(row, "spoke"), 1, percent=True) for row in tests if row["arm"] == arm}
        lines.append([title, *(with_interval(share(of[key], "covered"), 1, percent=True) for key in OF_VOTES), spoke["pair"], spoke[FAMILY]])
    told = (
        "Three annotators who agree more than by chance, four models of known strength, every two of them on every item. How often the intervals held the "
        "truth of the first model and the last, and how often the sign test spoke of these two, or, corrected, of any two. Made-up ties were needed in "
        f"{sum(row['split'] for row in found if row['of'] == 'strength')} elections."
    )
    headers = ["planted", *OF_VOTES.values(), "test speaks", "any test, corrected"]
    return f"## The arena's strengths\n\n{told}\n\nOf the kinds of interval, {_held(found)}.\n\n{markdown(headers, lines)}"


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """How often the intervals hold the truth, and what the sign test sees."""
    found, curve = of_kind(rows, "coverage"), of_kind(rows, "power")
    columns = [
        Column(f"{words}, {NUMBERS[name]}", {row["arm"]: share(row, "covered") for row in found if (row["of"], row["number"]) == (of, name)}, True, at=PROMISED)
        for name in ("photo_rate", "content")
        for of, words in (("rate", "rate"), ("win", "win rate"))
    ]
    note = "How often 95 % intervals held the truth known from the renderer, with binomial intervals."
    covered = dots_with_intervals(folder / "compared_coverage.png", "Do the intervals hold what they promise?", columns, note, titles=arms_of(found) | SHORT)
    lines = [_line(curve, arm) for arm in arms_of(curve)]
    panel = Panel("share of comparisons in which the sign test speaks", "difference of photo rates", "speaks", lines, percent=True)
    seen = curves(folder / "compared_power.png", "What the sign test sees, two images a prompt", [panel], "With binomial intervals.", titles=arms_of(curve))
    return [covered, seen]


def _line(curve: Sequence[Row], arm: str) -> Line:
    mine = sorted((row for row in curve if row["arm"] == arm), key=lambda row: row["effect"])
    shares = [share(row, "spoke") for row in mine]
    y, low, high = ([each[key] for each in shares] for key in ("value", "low", "high"))
    return Line(arm, [row["effect"] for row in mine], y, low, high)
