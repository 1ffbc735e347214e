"""The text of `convergence`: what each level costs, how many times that is SRPO's price, and one injection beside K steps of sampling."""

from __future__ import annotations

from .comparing.reading import of_kind, of_runs
from .costs import COSTS, LEVELS, PAPER, Ratio, against_paper, ratio, spent
from .depth import INJECTION, MODELS, interval
from .running.arms import OURS
from .running.records import Row, arms_of, seeds_of
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Mapping, Sequence


OFFICIAL = "srpo_official"
MIDDLE = LEVELS[len(LEVELS) // 2]


def tell(rows: list[Row]) -> str:
    """The whole text; every number in it comes from `rows`."""
    runs = of_runs(rows)
    parts = ["## The price of a level", _price_note(runs), _prices(runs), "## Over the price of SRPO", *_multiples(runs, OURS)]
    if OFFICIAL in arms_of(runs):
        parts += ["Over the price of SRPO as released:", _ratio_table(runs, OFFICIAL, "call_equivalents")]
    parts += ["## Beside the paper", _beside_paper(runs), "## One injection against K steps of sampling", *_depth(rows)]
    return "\n\n".join(parts)


# --- prices and their ratios ------------------------------------------------------------------------------------------


def _price_note(rows: list[Row]) -> str:
    levels = ", ".join(_percent(level) for level in LEVELS)
    return (
        f"Levels of the judge's photo rate: {levels}; read off where a run first reaches them, along a straight line between two measurements. "
        "A call equivalent is a sample through the network, two more where a gradient goes back through it. "
        f"Means over {len(seeds_of(rows))} seed(s) with 95 % intervals; seconds are those of training alone, on a machine that does other work too."
    )


def _prices(rows: list[Row]) -> str:
    keys = ("call_equivalents", "seconds", "step")
    headers = ["method", *(f"{COSTS[key]} to {_percent(level)}" for key in keys for level in LEVELS)]
    return markdown(headers, [[title, *(_price(rows, arm, key, level) for key in keys for level in LEVELS)] for arm, title in arms_of(rows).items()])


def _price(rows: list[Row], arm: str, key: str, level: float) -> str:
    found, reached, seeds = spent(rows, arm, key, level)
    if found is None:
        return "not reached"
    return with_interval(found, 0) + ("" if reached == seeds else f", {reached} of {seeds} seeds")


def _multiples(rows: list[Row], ours: str) -> list[str]:
    intro = (
        f"How many times the price of {arms_of(rows).get(ours, ours)} each method pays for the same level: the geometric mean over seeds. "
        "`> x, not reached` says that a run spent x times as much and did not get there."
    )
    tables = [(f"In {name}:", _ratio_table(rows, ours, key)) for key, name in COSTS.items() if key != "step"]
    return [intro, *(part for pair in tables for part in pair)]


def _ratio_table(rows: list[Row], ours: str, key: str) -> str:
    headers = ["method", *(f"to {_percent(level)}" for level in LEVELS), "the paper, GPU hours"]
    lines = []
    for arm, title in arms_of(rows).items():
        if arm != ours:
            lines.append([title, *(ratio(rows, arm, ours, key, level).written() for level in LEVELS), claim(arm)])
    return markdown(headers, lines)


def claim(arm: str) -> str:
    """What the paper says of a method, as "75–90"."""
    if arm not in PAPER:
        return DASH
    least, most = PAPER[arm]
    return f"{least:g}" if least == most else f"{least:g}–{most:g}"


def _beside_paper(rows: list[Row]) -> str:
    """One sentence for each method that the paper gives a cost of, against its own SRPO where that was run."""
    titles = arms_of(rows)
    lines = []
    for ours in (OFFICIAL, OURS):
        for arm in (arm for arm in PAPER if arm in titles and ours in titles):
            calls, seconds = (ratio(rows, arm, ours, key, MIDDLE) for key in ("call_equivalents", "seconds"))
            lines.append(
                f"- {titles[arm]} over {titles[ours]} at {_percent(MIDDLE)} (the paper: {claim(arm)}): {_in_words(calls, arm)}, {seconds.written()} in seconds."
            )
    return "\n".join(lines) or "No method that the paper gives a cost of was run."


def _in_words(calls: Ratio, arm: str) -> str:
    return f"{calls.written()} in call equivalents, {against_paper(calls, PAPER[arm])}"


# --- depth ------------------------------------------------------------------------------------------------------------


def _depth(rows: list[Row]) -> list[str]:
    found = of_kind(rows, "depth")
    note = (
        "The same absolute reward, the same weights before training, the same batches, all in turn within one process. "
        f"Seconds of an update without its optimiser step; intervals over {found[0]['batches']} batches. "
        "`spread`: standard deviation of the gradient's norm over its mean; `agreement`: mean cosine between the gradients of two batches."
    )
    return [note, _depth_table(found), *(_sentence(rows, *group) for group in _groups(found))]


def _groups(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """(model, length of the rollout) in the order in which they appear."""
    return list(dict.fromkeys((row["model"], row["num_sampling_steps"]) for row in rows))


def _depth_table(rows: Sequence[Row]) -> str:
    headers = ["model, gradient through", "seconds", "times Direct-Align's", "norm of the gradient", "spread", "agreement", "forward calls", "with gradient"]
    return markdown(headers, [_depth_line(row) for row in rows])


def _depth_line(row: Mapping[str, object]) -> list[str]:
    ratio_text = number(1, 2) if row["grad_steps"] == INJECTION else with_interval(interval(row, "ratio"), 2)
    where = f"{row['title']} ({row['num_sampling_steps']}-step rollout)" if row["grad_steps"] == INJECTION else str(row["title"])
    numbers = [_number(row["seconds"], 2), ratio_text, with_interval(interval(row, "grad_norm"), 3)]
    return [where, *numbers, *(_number(row[key], 2) for key in ("spread", "agreement")), *(_number(row[key], 0) for key in ("forward_calls", "backward_calls"))]


def _sentence(rows: list[Row], model: str, length: int) -> str:
    """What becomes of the gradient on its way from the image to the noise, and what the whole chain costs."""
    states = sorted(of_kind(rows, "state", model=model, num_sampling_steps=length), key=lambda row: row["depth"])
    chain = of_kind(rows, "depth", model=model, num_sampling_steps=length, grad_steps=length)[0]
    largest, noise = max(states, key=lambda row: row["growth"]), states[-1]
    return (
        f"{MODELS[model][0]}, {length} steps: the whole chain takes {with_interval(interval(chain, 'ratio'), 2)} times as long as one injection. "
        f"The reward's gradient at the initial noise is {with_interval(interval(noise, 'growth'), 2)} times that at the image, and largest "
        f"{largest['depth']} call(s) before it (sigma {number(largest['sigma'], 2)}): {with_interval(interval(largest, 'growth'), 2)} times."
    )


def _number(value: object, digits: int) -> str:
    assert isinstance(value, int | float), value
    return number(value, digits)


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
