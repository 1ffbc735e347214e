"""The stability study told from its rows: base and aligned model in every condition, and what the alignment still gains there."""

from __future__ import annotations

from .comparing.reading import of_kind, over
from .comparing.statistics import SeedInterval, mean_interval, mean_of, paired_over_seeds
from .running.records import Row, seeds_of
from .showing.figures import Line, Panel, curves
from .showing.tables import markdown, number, with_interval
import math
from collections.abc import Sequence
from pathlib import Path


KINDS = {
    "samplers": "Samplers",
    "num_sampling_steps": "Step counts",
    "embedded_guidance": "Embedded guidance",
    "cfg_scale": "Classifier-free guidance",
    "rounds": "Rounds of image to image",
}
BASE, ALIGNED = "base", "srpo"
NUMBERS = {"photo_rate": "photo rate", "content": "content", "color_drift": "colour drift"}


def tell(rows: list[Row]) -> str:
    """Markdown: a table and a verdict for each kind of condition, then the spread over image seeds."""
    parts = [LEGEND]
    for kind, title in KINDS.items():
        parts += [f"## {title}", table(rows, kind), verdict(rows, kind)]
    return "\n\n".join([*parts, "## Image seeds", spread_table(rows), spread_verdict(rows), "## Over all conditions", summary(rows)])


LEGEND = (
    "Base and aligned model on the same pairs, as means with 95 % intervals over training seeds, each with pairs of its own. Photo rate and content are what "
    "the judges say; colour drift is the distance of the mean colour cast from that of true photographs. The gain is aligned minus base, paired by seed. "
    "Whatever a table does not vary is as in training: eight Euler steps under the recipe's guidance; samplers are diffusers' schedulers in as many steps."
)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """`stability.png`: photo rate, content and colour drift over step counts, both guidances and rounds, base and aligned."""
    kinds = [kind for kind in KINDS if kind != "samplers"]
    places = [(key, kind) for key in NUMBERS for kind in kinds]
    panels = [_panel(rows, key, kind, named=kind == kinds[-1]) for key, kind in places]
    note = "Means and 95 % intervals over training seeds."
    return [curves(folder / "stability.png", "The aligned model in ways it was not trained for", panels, note, columns=len(kinds))]


# --- conditions -------------------------------------------------------------------------------------------------------


def conditions(rows: Sequence[Row], kind: str) -> list[str | int | float]:
    """The conditions of one kind in the order in which they were sampled."""
    return list(dict.fromkeys(row["what"] for row in of_kind(rows, kind)))


def by_seed(rows: Sequence[Row], arm: str, kind: str, what: str | int | float) -> list[Row]:
    """One row per training seed, in their order."""
    return sorted(of_kind(rows, kind, what=what, arm=arm), key=lambda row: row["seed"])


def gain(rows: Sequence[Row], kind: str, what: str | int | float, key: str) -> SeedInterval:
    """Aligned minus base in one condition."""
    aligned, base = ([row[key] for row in by_seed(rows, arm, kind, what)] for arm in (ALIGNED, BASE))
    return paired_over_seeds(aligned, base)


def table(rows: list[Row], kind: str) -> str:
    """A line per condition."""
    lines = []
    for what in conditions(rows, kind):
        pairs = [over(by_seed(rows, arm, kind, what), key) for key in NUMBERS for arm in (BASE, ALIGNED)]
        shown = [with_interval(cell, 0, percent=True) for cell in pairs[:4]] + [with_interval(cell, 3) for cell in pairs[4:]]
        lines.append([_name(what), *shown, with_interval(gain(rows, kind, what, "photo_rate"), 2)])
    sides = [f"{shown}, {side}" for shown in NUMBERS.values() for side in ("base", "aligned")]
    return markdown([KINDS[kind].lower(), *sides, "gain in photo rate"], lines)


def verdict(rows: list[Row], kind: str) -> str:
    """Where the gain is largest and smallest, and how far content falls behind the base's."""
    gains, losses = ({what: gain(rows, kind, what, key)["value"] for what in conditions(rows, kind)} for key in ("photo_rate", "content"))
    least, most = (chosen(gains, key=lambda what: gains[what]) for chosen in (min, max))
    worst = min(losses, key=lambda what: losses[what])
    return (
        f"The gain in photo rate runs from {number(gains[least])} ({_name(least)}) to {number(gains[most])} ({_name(most)}). "
        f"Against the base model content changes by {number(losses[worst])} where it does worst ({_name(worst)})."
    )


def summary(rows: list[Row]) -> str:
    """In how many conditions the gain is sure, and in how many content is surely lost."""
    every = [(kind, what) for kind in KINDS for what in conditions(rows, kind)]
    gained = [place for place in every if _surely(gain(rows, *place, "photo_rate"), 1)]
    lost = [place for place in every if _surely(gain(rows, *place, "content"), -1)]
    names = f": {', '.join(f'{KINDS[kind].lower()} {_name(what)}' for kind, what in lost)}" if lost else ""
    return (
        f"In {len(gained)} of {len(every)} conditions the aligned model makes more photos than the base with an interval that leaves out zero; "
        f"in {len(lost)} it keeps less of the content with such an interval{names}. Intervals need more than one seed; {len(seeds_of(rows))} were trained."
    )


def _surely(interval: SeedInterval, sign: int) -> bool:
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return False
    return low > 0 if sign > 0 else high < 0


# --- image seeds ------------------------------------------------------------------------------------------------------


def spread(rows: Sequence[Row], arm: str, seed: int) -> tuple[float, float]:
    """Standard deviation of the photo rate over image seeds, and what the number of prompts alone would give, √(p(1 − p)/n)."""
    found = of_kind(rows, "image_seeds", arm=arm, seed=seed)
    rates = [row["photo_rate"] for row in found]
    mean = math.fsum(rates) / len(rates)
    deviation = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1))
    return deviation, math.sqrt(mean * (1 - mean) / found[0]["images"])


def spread_table(rows: list[Row]) -> str:
    """Photo rate of many noises that all prompts share: mean, spread, the spread of chance, and the extremes."""
    lines = []
    for arm, title in ((BASE, "base model"), (ALIGNED, "aligned model")):
        found = of_kind(rows, "image_seeds", arm=arm)
        spreads = [spread(rows, arm, seed) for seed in seeds_of(rows, arm)]
        measured, chance = (mean_interval(list(values)) for values in zip(*spreads, strict=True))
        rates = [row["photo_rate"] for row in found]
        means = mean_interval([math.fsum(each) / len(each) for each in _grouped(rows, arm)])
        extremes = f"{number(100 * min(rates), 0)} % to {number(100 * max(rates), 0)} %"
        lines.append([title, str(len(found)), with_interval(means, 0, percent=True), with_interval(measured, 3), number(chance["value"], 3), extremes])
    return markdown(["model", "image seeds", "photo rate", "spread over image seeds", "spread of chance", "from, to"], lines)


def spread_verdict(rows: list[Row]) -> str:
    """Whether noises differ more than chance, and for which model more."""
    spreads = {arm: [spread(rows, arm, seed) for seed in seeds_of(rows, arm)] for arm in (BASE, ALIGNED)}
    measured = {arm: math.fsum(found for found, _ in each) / len(each) for arm, each in spreads.items()}
    chance = {arm: math.fsum(expected for _, expected in each) / len(each) for arm, each in spreads.items()}
    wider = "more" if measured[ALIGNED] > measured[BASE] else "no more"
    times = {arm: number(measured[arm] / chance[arm], 1) if chance[arm] > 0 else "no" for arm in (BASE, ALIGNED)}
    return (
        f"From one noise to the next the aligned model's photo rate varies {wider} than the base's "
        f"({number(measured[ALIGNED], 3)} against {number(measured[BASE], 3)}). "
        f"In units of what the number of prompts gives by chance that is {times[ALIGNED]} for the aligned model and {times[BASE]} for the base."
    )


def _grouped(rows: Sequence[Row], arm: str) -> list[list[float]]:
    return [[row["photo_rate"] for row in of_kind(rows, "image_seeds", arm=arm, seed=seed)] for seed in seeds_of(rows, arm)]


# --- pictures ---------------------------------------------------------------------------------------------------------


def _panel(rows: list[Row], key: str, kind: str, named: bool) -> Panel:
    is_rate = key != "color_drift"
    lines = _lines(rows, kind, key)
    return Panel(NUMBERS[key], KINDS[kind].lower(), "", lines, percent=is_rate, named=named, span_y=(-0.03, 1.03) if is_rate else None)


def _lines(rows: list[Row], kind: str, key: str) -> list[Line]:
    lines = []
    for arm in (BASE, ALIGNED):
        x = [what for what in conditions(rows, kind) if not isinstance(what, str)]
        found = [mean_of(key, [row[key] for row in by_seed(rows, arm, kind, what)]) for what in x]
        bands = [(each["low"], each["high"]) for each in found]
        known = [(low, high) for low, high in bands if low is not None and high is not None]
        low, high = ([low for low, _ in known], [high for _, high in known]) if len(known) == len(found) else ([], [])
        lines.append(Line(arm, x, [each["value"] for each in found], low, high))
    return lines


def _name(what: str | int | float) -> str:
    return what if isinstance(what, str) else f"{what:g}"
