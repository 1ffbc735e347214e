"""What the study `stopping` found, in words, tables and figures, all of it from its rows.

The best checkpoint of a free run is the measurement with the highest photo rate among those that lost no more content than the budget
allows; among equals the earliest. It is known in hindsight, from the judge; a controlled run had to find it while it went on.
"""

from __future__ import annotations

from .comparing.reading import ends, of_kind, of_runs
from .comparing.statistics import mean_of
from .running.records import Row, of_run, seeds_of
from .showing.figures import Place, Scale, plane
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


LOSS, NEAR = 0.03, 0.02
"""How much content the best may have lost, and how near to the best photo rate the kept one is to be; in shares of images."""
FREE, JUDGED, UNJUDGED = "free", "judged", "unjudged"
CONTROLLED = {JUDGED: "budget and judge", UNJUDGED: "absolute score alone"}
BEST = "best in hindsight"


def tell(rows: list[Row]) -> str:
    """All forms in one table, then one part per form: what became of the free run, and each controlled run against the best in hindsight."""
    endings, runs = of_kind(rows, "ending"), of_runs(rows)
    return "\n\n".join([in_short(rows), *(_form(form, title, runs, endings) for form, title in _forms(endings).items())])


def in_short(rows: Sequence[Row]) -> str:
    """One line per form and rule, means over seeds with their intervals: when it ended, and what it left."""
    endings, runs = of_kind(rows, "ending"), of_runs(rows)
    lines = [line for form, title in _forms(endings).items() for line in _lines_in_short(form, title, endings, runs)]
    return markdown(["run", "updates", "weights of update", "photo rate", "content right", "colour drift"], lines)


def _forms(endings: Sequence[Row]) -> dict[str, str]:
    return {row["form"]: row["title"].split(",")[0] for row in endings}


def _lines_in_short(form: str, title: str, endings: Sequence[Row], runs: Sequence[Row]) -> list[list[str]]:
    free = f"{form}_{FREE}"
    best = [best_of(form, seed, runs) for seed in seeds_of(runs, free)]
    ended = {rule: of_kind(endings, "ending", form=form, rule=rule) for rule in (FREE, *CONTROLLED)}
    lines = [_mean_line(f"{title}, {CONTROLLED.get(rule, 'no control')}", found) for rule, found in ended.items()]
    return [*lines, _mean_line(f"{title}, {BEST}", [{**row, "updates": None, "kept": row["step"]} for row in best])]


def _mean_line(name: str, rows: Sequence[Row]) -> list[str]:
    def mean(key: str, digits: int = 0, percent: bool = False) -> str:
        values = [row[key] for row in rows if row[key] is not None]
        return with_interval(mean_of(key, values), digits, percent) if values else DASH

    updates = [f"{sum(row[key] for row in rows) / len(rows):.0f}" if rows[0][key] is not None else DASH for key in ("updates", "kept")]
    return [name, *updates, mean("photo_rate", percent=True), mean("content", percent=True), mean("color_drift", 3)]


def best_of(form: str, seed: int, runs: Sequence[Row], loss: float = LOSS) -> Row:
    """The best measurement of a free run in hindsight; the base model's where every other one lost too much content.

    The controlled run of the same seed has measured the base model on the pairs that are measured during a run.
    """
    whole = of_run(runs, f"{form}_{JUDGED}", seed)[0]["content"]
    within = [row for row in of_run(runs, f"{form}_{FREE}", seed) if whole - row["content"] <= loss + 1e-9 or row["step"] == 0]
    return max(within, key=lambda row: (row["photo_rate"], -row["step"]))


def _form(form: str, title: str, runs: Sequence[Row], endings: Sequence[Row]) -> str:
    seeds = seeds_of(runs, f"{form}_{FREE}")
    lines = [_line(form, rule, seed, runs, endings) for seed in seeds for rule in (FREE, *CONTROLLED)]
    headers = ["run", "seed", "updates", "stopped for", "kept", "photo rate", "content", "colour drift", "best photo rate in hindsight", "at update"]
    return f"## {title[0].upper()}{title[1:]}\n\n{_sentences(form, seeds, runs, endings)}\n\n{markdown(headers, lines)}"


def _line(form: str, rule: str, seed: int, runs: Sequence[Row], endings: Sequence[Row]) -> list[str]:
    (end,) = of_kind(endings, "ending", form=form, rule=rule, seed=seed)
    best = best_of(form, seed, runs)
    name = CONTROLLED.get(rule, "no control")
    told = [str(end["updates"]), (end["reason"] or DASH).replace("_", " "), str(end["kept"])]
    return [
        name,
        str(seed),
        *told,
        *(number(end[key], 3) for key in ("photo_rate", "content", "color_drift")),
        number(best["photo_rate"], 3),
        str(best["step"]),
    ]


def _sentences(form: str, seeds: Sequence[int], runs: Sequence[Row], endings: Sequence[Row]) -> str:
    free = ends(runs, f"{form}_{FREE}")
    lost = [of_run(runs, f"{form}_{FREE}", seed)[0]["content"] - row["content"] for seed, row in zip(seeds, free, strict=True)]
    ruin = f"Without control the run ends with {with_interval(mean_of('lost', lost), 0, percent=True)} of the content lost."
    return " ".join([ruin, *(_verdict(form, rule, seeds, runs, endings) for rule in CONTROLLED)])


def _verdict(form: str, rule: str, seeds: Sequence[int], runs: Sequence[Row], endings: Sequence[Row]) -> str:
    """How many seeds ended themselves, and how many kept what was as good as the best and within the budget."""
    found = [of_kind(endings, "ending", form=form, rule=rule, seed=seed)[0] for seed in seeds]
    free = [of_run(runs, f"{form}_{FREE}", seed) for seed in seeds]
    stopped = sum(row["reason"] is not None for row in found)
    short = [best_of(form, seed, runs)["photo_rate"] - row["photo_rate"] for seed, row in zip(seeds, found, strict=True)]
    lost = [run[0]["content"] - row["content"] for run, row in zip(free, found, strict=True)]
    near = sum(a <= NEAR + 1e-9 and b <= LOSS + 1e-9 for a, b in zip(short, lost, strict=True))
    behind = with_interval(mean_of("short", [100 * each for each in short]), 1)
    gone = with_interval(mean_of("gone", [100 * each for each in lost]), 1)
    return (
        f"With {CONTROLLED[rule]} {stopped} of {len(seeds)} runs ended themselves; what they keep is {behind} points of photo rate behind the best in "
        f"hindsight, with {gone} points of content lost; {near} of {len(seeds)} are within {100 * NEAR:.0f} and {100 * LOSS:.0f} points."
    )


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """One plane per form: the way of the free runs, where they end, and what the controlled runs keep."""
    endings, runs = of_kind(rows, "ending"), of_runs(rows)
    return [_plane(form, runs, endings, folder) for form in dict.fromkeys(row["form"] for row in endings)]


def _plane(form: str, runs: Sequence[Row], endings: Sequence[Row], folder: Path) -> Path:
    free, seeds = f"{form}_{FREE}", seeds_of(runs, f"{form}_{FREE}")
    trail = [(row["content"], row["photo_rate"]) for row in of_run(runs, free, seeds[0])]
    places = [_place("no control, at the end", ends(runs, free), trail), _place(BEST, [best_of(form, seed, runs) for seed in seeds])]
    places += [_place(title, of_kind(endings, "ending", form=form, rule=rule)) for rule, title in CONTROLLED.items()]
    title = f"What is kept, {endings[[row['form'] for row in endings].index(form)]['title'].split(',')[0]}"
    note = "Means over seeds, with 95 % intervals; the line is the way of the first free run."
    axes = Scale("content right", percent=True), Scale("photo rate", percent=True)
    return plane(folder / f"stopping_{form}.png", title, *axes, places, note, better="upper right")


def _place(name: str, rows: Sequence[Row], trail: Sequence[tuple[float, float]] = ()) -> Place:
    x, y = (mean_of(key, [row[key] for row in rows]) for key in ("content", "photo_rate"))
    return Place(name, x, y, trail)
