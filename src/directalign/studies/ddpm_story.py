"""The ddpm study told from its rows: methods at the end of their budget and where they are equally far, windows, grids, schedules."""

from __future__ import annotations

from .comparing.reading import at_step, ends, over, steps_of
from .comparing.statistics import at_level
from .ddpm_levels import GROUPS, dots, judged, known, listed, mean, percent, schedule_table, schedule_verdict, short_table, short_verdict, value_of
from .running.records import Row, of_run, seeds_of
from .showing.figures import Place, Scale, plane
from .showing.palette import title_of
from .showing.tables import markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


LEVEL = 0.5
"""The photo rate at which methods are compared: not so far that none gets there, far enough to tell."""
HELD = 0.9
"""A content rate from which on the picture counts as held."""


def tell(rows: list[Row]) -> str:
    """Markdown: the methods on both predictions, SRPO over windows and grids, the closed form on other schedules."""
    parts = [LEGEND]
    for prediction in predictions(rows):
        parts += [
            f"## Methods, {prediction}",
            methods_table(rows, prediction),
            f"At photo rate {percent(LEVEL)}:",
            level_table(rows, prediction),
            verdict(rows, prediction),
        ]
    parts += ["## Both predictions", orders(rows)]
    for group in dict.fromkeys(row["group"] for row in rows if row.get("group", "methods") != "methods"):
        parts += [f"## {GROUPS[group]}", short_table(rows, group), short_verdict(rows, group)]
    return "\n\n".join([*parts, "## The closed form on other schedules", schedule_table(rows), schedule_verdict(rows)])


LEGEND = (
    "Means over seeds with 95 % intervals. Photo rate and content are what the independent judges say, colour drift is the distance of the mean colour cast "
    "from that of true photographs; calls count one per sample through the network and two more where a gradient went back."
)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """`ddpm_epsilon.png`, `ddpm_v.png`: every method between photo rate and colour drift; `ddpm_levels.png`: windows and grids."""
    pictures = [_plane(rows, prediction, folder / f"ddpm_{prediction}.png") for prediction in predictions(rows)]
    return [*pictures, dots(rows, folder / "ddpm_levels.png")]


# --- methods ----------------------------------------------------------------------------------------------------------


def predictions(rows: Sequence[Row]) -> list[str]:
    """What the checkpoints predict, in the order of the rows."""
    return list(dict.fromkeys(row["prediction"] for row in rows if row.get("group") == "methods"))


def arms_of(rows: Sequence[Row], group: str, prediction: str) -> dict[str, str]:
    """{arm: method, window or grid} of one group."""
    return {row["arm"]: row["what"] for row in rows if (row.get("group"), row["prediction"]) == (group, prediction)}


def methods_table(rows: list[Row], prediction: str) -> str:
    """Every method at the end of its run, the base model first."""
    arms = arms_of(rows, "methods", prediction)
    base = at_step(rows, next(iter(arms)), 0)
    lines = [["base model", "0", "0", "0", *judged(base)]]
    for arm, what in arms.items():
        found = ends(rows, arm)
        spent = [number(value_of(over(found, key)), 0) for key in ("step", "call_equivalents", "seconds")]
        lines.append([title_of(what), *spent, *judged(found)])
    return markdown(["method", "updates", "calls", "seconds", "photo rate", "content", "colour drift", "reward"], lines)


def at_photo_rate(rows: Sequence[Row], arm: str, level: float = LEVEL) -> list[Row]:
    """One row per seed that reaches the photo rate, read off between its measurements."""
    found = [at_level(of_run(rows, arm, seed), "photo_rate", level) for seed in seeds_of(rows, arm)]
    return [row for row in found if row is not None]


def level_table(rows: list[Row], prediction: str) -> str:
    """What it took, and what else changed, where all methods make equally many photos."""
    lines = []
    for arm, what in arms_of(rows, "methods", prediction).items():
        found = at_photo_rate(rows, arm)
        reached = f"{len(found)} of {len(seeds_of(rows, arm))}"
        drift, content = with_interval(over(found, "color_drift"), 3), with_interval(over(found, "content"), 0, percent=True)
        lines.append([title_of(what), reached, number(value_of(over(found, "call_equivalents")), 0), content, drift])
    return markdown(["method", "seeds that reach it", "calls", "content", "colour drift"], lines)


def verdict(rows: list[Row], prediction: str) -> str:
    """Who makes the most photos, who holds content, who drifts least at equal photo rate."""
    arms = arms_of(rows, "methods", prediction)
    last = {what: {key: mean(ends(rows, arm), key) for key in ("photo_rate", "content")} for arm, what in arms.items()}
    most = max(last, key=lambda what: last[what]["photo_rate"])
    held = [title_of(what) for what, found in last.items() if found["content"] >= HELD]
    lost = [f"{title_of(what)} ({percent(found['content'])})" for what, found in last.items() if found["content"] < HELD]
    photo, content = (percent(last[most][key]) for key in ("photo_rate", "content"))
    said = [f"On {prediction}, {title_of(most)} ends with the highest photo rate, {photo}, and content {content}."]
    said.append(f"Content of {percent(HELD)} or more is left after {listed(held)}; less after {listed(lost)}.")
    drifts = {what: mean(at_photo_rate(rows, arm), "color_drift") for arm, what in arms.items() if at_photo_rate(rows, arm)}
    if not drifts:
        return " ".join([*said, f"No method reaches photo rate {percent(LEVEL)}."])
    ranked = [f"{title_of(what)} ({number(drifts[what], 3)})" for what in sorted(drifts, key=lambda what: drifts[what])]
    return " ".join([*said, f"At photo rate {percent(LEVEL)}, from the least colour drift to the most: {listed(ranked)}."])


def orders(rows: list[Row]) -> str:
    """Whether the methods come in the same order on both predictions."""
    ranked = {}
    for prediction in predictions(rows):
        rates = {what: mean(ends(rows, arm), "photo_rate") for arm, what in arms_of(rows, "methods", prediction).items()}
        ranked[prediction] = sorted(rates, key=lambda what: -rates[what])
    lines = [f"By photo rate at the end, on {prediction}: {listed([title_of(what) for what in order])}." for prediction, order in ranked.items()]
    same = f"The order is {'the same' if len({tuple(order) for order in ranked.values()}) == 1 else 'not the same'} on all of them."
    return " ".join([*lines, same]) if len(ranked) > 1 else lines[0]


# --- pictures ---------------------------------------------------------------------------------------------------------


def _plane(rows: list[Row], prediction: str, file: Path) -> Path:
    places = []
    for arm, what in arms_of(rows, "methods", prediction).items():
        found = ends(rows, arm)
        trail = [(mean(at, "photo_rate"), mean(at, "color_drift")) for at in (at_step(rows, arm, step) for step in steps_of(rows, arm))]
        places.append(Place(what, known(over(found, "photo_rate")), known(over(found, "color_drift")), trail))
    note = f"Stable Diffusion, {prediction}: each method at the end of its run, with its way there; intervals over seeds."
    x, y = Scale("photo rate", percent=True), Scale("colour drift from true photographs")
    return plane(file, "More photos, and how much colour they cost", x, y, places, note, better="lower right")
