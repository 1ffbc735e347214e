"""Rows of a study, statistics over seeds, and runs at equal cost or equal quality.

A row is one flat dict. Rows of training runs, one per measurement, have no `kind`:

    {"study", "arm", "title", "seed", "step", "seconds", "forward_calls", "backward_calls",
     "call_equivalents", "learning_rate", "photo_rate", "photo_rate_low", "photo_rate_high",
     "content", ..., "commit", "machine", "versions"}

`seconds` and calls count the updates alone. `call_equivalents` are NFE equivalents: 1 per forward
pass of one sample, 3 with a backward pass. Between two measurements a run is linear. Intervals are
95 %, Student's t over seeds; one seed has no interval (its ends are None).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from directalign.io.atomic import write_text
from directalign.stats import t_quantile
from directalign.types import DirectAlignError

Row = dict[str, Any]
Number = int | float
Pick = Callable[[Sequence[Row]], Row | None]
"""From the measurements of one run to the one that is compared; None where it has no such."""
RATES = ("photo_rate", "photo_a", "content", "share", "lost", "delivered", "style_")
RATES += ("off_topic_style", "off_topic_content")
"""Shares of images: the ends of their intervals are clipped to [0, 1]."""


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Write rows as JSON lines, atomically; the folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(file, "".join(lines))


def read_rows(file: Path) -> Rows:
    """Rows of a JSON lines file.

    Raises: DirectAlignError for a missing file, or naming the line that is not one JSON object.
    """
    if not file.is_file():
        raise DirectAlignError(f"{file}: no such file of results; run the study first")
    rows = Rows()
    for place, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        row: Any = None
        try:
            row = json.loads(line)
            problem = None if isinstance(row, dict) else "not a JSON object"
        except ValueError as error:
            problem = f"not JSON ({error})"
        if problem:
            remedy = "run the study again to rewrite it"
            raise DirectAlignError(f"{file}, line {place}: {problem}; {remedy}")
        rows.append(row)
    return rows


class Rows(list[Row]):
    """The rows of a study, or some of them."""

    def where(self, **values: object) -> Rows:
        """Rows that hold these values."""
        wanted = values.items()
        return Rows(row for row in self if all(row.get(key) == value for key, value in wanted))

    @property
    def runs(self) -> Rows:
        """Measurements of training runs."""
        return Rows(row for row in self if "kind" not in row)

    @property
    def arms(self) -> dict[str, str]:
        """{arm: title} in order of appearance."""
        return {row["arm"]: row["title"] for row in self}

    @property
    def base(self) -> Row:
        """The first measurement of training runs: the base model, the same in every run."""
        return min(self, key=lambda row: row["step"])

    def seeds(self, arm: str | None = None) -> list[int]:
        """The seeds (of one arm), ascending."""
        return sorted({row["seed"] for row in self if arm in (None, row["arm"])})

    def run(self, arm: str, seed: int) -> Rows:
        """Measurements of one arm and seed, by step."""
        return Rows(sorted(self.where(arm=arm, seed=seed), key=lambda row: row["step"]))

    def runs_of(self, arm: str) -> list[Rows]:
        """The runs of an arm, by seed."""
        return [self.run(arm, seed) for seed in self.seeds(arm)]

    def at(self, arm: str, step: int) -> Rows:
        """One row per seed: the measurement of an arm after `step` updates, where there is one."""
        return Rows(row for run in self.runs_of(arm) for row in run if row["step"] == step)

    def last(self, arm: str) -> Rows:
        """One row per seed: the last measurement of an arm."""
        return Rows(run[-1] for run in self.runs_of(arm))

    def curve(self, arm: str, key: str) -> list[tuple[Number, SeedInterval]]:
        """(updates, mean over seeds) of one number along the runs of an arm."""
        steps = sorted({row["step"] for row in self if row["arm"] == arm})
        return [(step, mean_of(key, [row[key] for row in self.at(arm, step)])) for step in steps]

    def highest_common(self, arms: Sequence[str], key: str = "photo_rate") -> Number:
        """The highest level of `key` that every run of these arms reaches."""
        return min(max(row[key] for row in run) for arm in arms for run in self.runs_of(arm))

    def level_of_most(self, key: str, share: float = 2 / 3) -> Number:
        """The highest level of `key` that this share of the arms reaches with every seed."""
        levels = sorted((self.highest_common([arm], key) for arm in self.arms), reverse=True)
        return levels[math.ceil(share * len(levels)) - 1]

    def matched(self, pick: Pick) -> dict[str, Rows]:
        """{arm: one row per seed}, of those arms that `pick` can read with every seed."""
        found = {arm: [pick(run) for run in self.runs_of(arm)] for arm in self.arms}
        known = {arm: Rows(row for row in each if row) for arm, each in found.items()}
        return {arm: each for arm, each in known.items() if len(each) == len(found[arm])}

    def pairs(self, ours: str, theirs: str, pick: Pick) -> list[tuple[Row, Row]]:
        """(our row, their row) of every seed that both arms have and `pick` can read in both."""
        seeds = sorted(set(self.seeds(ours)) & set(self.seeds(theirs)))
        found = [(pick(self.run(ours, seed)), pick(self.run(theirs, seed))) for seed in seeds]
        return [(mine, other) for mine, other in found if mine is not None and other is not None]


# --- statistics over seeds ------------------------------------------------------------------------


class SeedInterval(TypedDict):
    """A mean over `n` seeds with the ends of its interval; both ends are None for one seed."""

    value: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[Number]) -> SeedInterval:
    """Mean ± t·s/√n (Gosset 1908), without ends for one value. Raises: ValueError without any."""
    n = len(values)
    if n == 0:
        raise ValueError("an interval of a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return SeedInterval(value=mean, low=None, high=None, n=n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return SeedInterval(value=mean, low=mean - half, high=mean + half, n=n)


def mean_of(key: str, values: Sequence[Number]) -> SeedInterval:
    """`mean_interval` of a number with a name: the interval of a rate is clipped to [0, 1]."""
    found = mean_interval(values)
    low, high = found["low"], found["high"]
    if low is not None and high is not None and key.startswith(RATES):
        found["low"], found["high"] = max(0.0, low), min(1.0, high)
    return found


def over(rows: Sequence[Row], key: str) -> SeedInterval | None:
    """Mean of `key` over rows, one per seed; None without rows or where a row lacks the number."""
    values = [row.get(key) for row in rows]
    known = [value for value in values if value is not None]
    return mean_of(key, known) if known and len(known) == len(values) else None


def ratio_interval(a: Sequence[Number], b: Sequence[Number]) -> SeedInterval:
    """Geometric mean of a / b over seeds, with the interval of the mean logarithm.

    Raises: ValueError for a number that is not positive.
    """
    if min(*a, *b) <= 0:
        raise ValueError(f"a ratio over seeds needs positive numbers: got {list(a)} and {list(b)}")
    found = mean_interval([math.log(x / y) for x, y in zip(a, b, strict=True)])
    low, high = (None if end is None else math.exp(end) for end in (found["low"], found["high"]))
    return SeedInterval(value=math.exp(found["value"]), low=low, high=high, n=found["n"])


# --- runs at equal quality or cost ----------------------------------------------------------------


def at_level(run: Sequence[Row], key: str, level: Number) -> Row | None:
    """The run where `key` first reaches `level` from below; None if it never does.

    Numbers that both neighbouring measurements have are interpolated, equal values are kept, the
    rest is left out. A run that starts at or above the level gives its first row.
    """
    known = sorted((row for row in run if _is_number(row.get(key))), key=lambda row: row["step"])
    if known and known[0][key] >= level:
        return dict(known[0])
    for before, after in pairwise(known):
        if before[key] < level <= after[key]:
            share, row = (level - before[key]) / (after[key] - before[key]), {}
            for name in (name for name in before if name in after):
                here, there = before[name], after[name]
                if here == there:
                    row[name] = here
                elif _is_number(here) and _is_number(there):
                    row[name] = here + share * (there - here)
            return row
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def at_budget(run: Sequence[Row], key: str, amount: Number) -> Row | None:
    """The run where it has spent `amount` of a cost (seconds, step, ...); None if it ended before.

    Raises: ValueError where the key falls during the run.
    """
    spent = [row[key] for row in sorted(run, key=lambda row: row["step"])]
    if any(later < earlier for earlier, later in pairwise(spent)):
        raise ValueError(f"{key} falls during the run: a cost never falls")
    return at_level(run, key, amount)


def after(updates: int) -> Pick:
    """Read a run after so many updates."""
    return lambda run: at_budget(run, "step", updates)


def at_photo_rate(level: Number) -> Pick:
    """Read a run where its photo rate first reaches `level`."""
    return lambda run: at_level(run, "photo_rate", level)


def difference(pairs: Sequence[tuple[Row, Row]], key: str) -> SeedInterval | None:
    """Ours minus theirs over the pairs that have `key`; None without such pairs."""
    known = [(mine[key], other[key]) for mine, other in pairs if key in mine and key in other]
    return mean_interval([mine - other for mine, other in known]) if known else None


def cost_ratio(pairs: Sequence[tuple[Row, Row]], key: str) -> SeedInterval | None:
    """Ours over theirs; None without pairs, or where a run has spent nothing yet."""
    known = [(mine[key], other[key]) for mine, other in pairs]
    spent = known and all(cost > 0 for pair in known for cost in pair)
    return ratio_interval(*zip(*known, strict=True)) if spent else None
