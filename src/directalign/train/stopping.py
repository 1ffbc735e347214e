"""When a run ends itself, and which of its weights are the best so far: a pure function of its records.

So a run that is killed and continued stops where the undisturbed one would have, and any reader can check the decision. All
comparisons are with the base model's measurement at step 0, on the pairs that are measured during the run.

A measurement is within the budget while no number of `stop.drift` has moved further for the worse than it may; where none is
named and `stop.score_patience` is set, while the absolute score has not clearly fallen from its highest before: by more than two
standard errors of the difference on equal pairs. The weights that are kept: of those within the budget the highest judge; where two judges do not
differ by more than the standard error of their difference, the ones that used less of the budget (Breiman's one-standard-error
rule: of what cannot be told apart, the more modest). Without any within the budget: those that overdrew it least.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .. import config
from ..evaluate.measured_numbers import judge_of, measured_metrics, score_of
from ..types import DirectAlignError

Reason = Literal["drift", "judge_patience", "score_peak"]
CLEARLY = 2.0
"""Standard errors by which the absolute score must lie below its peak to have fallen."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """The `stop` section with the names that it means, and which way each number is better."""

    stop: config.Stop
    judge: str
    score: str
    better: Mapping[str, int]


@dataclass(frozen=True)
class Measured:
    """A measurement as the rules see it: a judge that is not finite is the worst, a drift that is not finite is over any budget."""

    step: int
    judge: float
    score: float
    used: Mapping[str, float]
    """By how much of its allowance each budgeted number has moved for the worse: 1 is all of it."""
    each: Mapping[str, Sequence[float | None]]
    fallen: bool = False
    """Whether the absolute score has clearly fallen from its highest so far, under a rule that minds it."""

    @property
    def drift(self) -> float:
        """The largest share of any budget, 0 without one."""
        return max(self.used.values(), default=0.0)

    @property
    def within(self) -> bool:
        """Within the budget, or where there is none not past the peak of the score."""
        return self.drift <= 1 and (bool(self.used) or not self.fallen)


@dataclass(frozen=True)
class Ending:
    """Why a run ends itself."""

    reason: Reason
    says: str


@dataclass(frozen=True)
class Verdict:
    """What the rules make of a run so far."""

    best: Measured | None
    """Whose weights are the best so far; None while there are none to be had."""
    last: Measured
    ending: Ending | None


def rules_of(run: config.Run) -> Rules | None:
    """The run's stop rules, None where it has none."""
    return Rules(run.stop, judge_of(run), score_of(run), {name: each.better for name, each in measured_metrics(run).items()}) if run.stop is not None else None


def verdict(rules: Rules, records: Sequence[Record], lost: Collection[int] = ()) -> Verdict:
    """Decide from the records of a run, in their order; `lost` are updates whose weights are not there to be kept.

    Raises: DirectAlignError where the base model was not measured, or not by a number that the rules read.
    """
    seen = measurements(rules, records)
    return Verdict(_best(rules, seen, lost), seen[-1], _overdrawn(rules, seen) or _no_better(rules, seen) or _past_its_peak(rules, seen))


def measurements(rules: Rules, records: Sequence[Record]) -> list[Measured]:
    """The measurements of a run in their order, each held against the first, that of the base model."""
    found = [record for record in records if record["event"] == "evaluate"]
    if not found or found[0]["step"] != 0:
        raise DirectAlignError("stop: the base model was not measured (no record of step 0 in metrics.jsonl), and drift is counted from there; start a new run")
    base = found[0]
    for name in (rules.judge, rules.score, *rules.stop.drift):
        if name not in base:
            raise DirectAlignError(f"stop: {name} was not measured at step 0 (metrics.jsonl has {', '.join(_numbers(base))}); name one of these")
        if not math.isfinite(value(during(base), name)):
            raise DirectAlignError(f"stop: {name} of the base model is not finite, and changes are counted from it; name another number")
    seen = [_measured(rules, record, base) for record in found]
    return seen if rules.stop.score_patience is None else _falls_marked(rules, seen)


def _falls_marked(rules: Rules, seen: Sequence[Measured]) -> list[Measured]:
    """The same measurements, each held against the highest score before it: a later peak does not change what was decided."""
    marked, peak = list[Measured](), seen[0]
    for each in seen:
        marked.append(replace(each, fallen=not peak.score - each.score <= CLEARLY * noise(each, peak, rules.score)))
        peak = each if each.score > peak.score else peak
    return marked


def _measured(rules: Rules, record: Record, base: Record) -> Measured:
    now, then = during(record), during(base)
    judge = value(now, rules.judge)
    return Measured(record["step"], judge if math.isfinite(judge) else -math.inf, value(now, rules.score), shares(rules, now, then), record.get("each") or {})


def shares(rules: Rules, now: Record, base: Record) -> dict[str, float]:
    """By how much of its allowance each budgeted number is worse than the base model's, both measured on the same pairs."""
    return {name: _share(value(now, name) - value(base, name), rules.better.get(name, 0), allowed) for name, allowed in rules.stop.drift.items()}


def during(record: Record) -> Record:
    """The numbers of a measurement on the pairs that are measured during the run; what is not measured on pairs is the same on all of them."""
    return {**record, **(record.get("during") or {})}


def value(record: Record, name: str) -> float:
    """A number of a measurement, of a rate its value; nan where it is not finite."""
    found = record.get(name)
    found = found.get("value") if isinstance(found, Mapping) else found
    return math.nan if found is None else float(found)


def _share(change: float, better: int, allowed: float) -> float:
    worse = abs(change) if better == 0 else -better * change
    return max(0.0, worse / allowed) if math.isfinite(worse) else math.inf


def _numbers(record: Record) -> list[str]:
    return [name for name, found in record.items() if name not in ("step", "event", "seconds", "during", "each") and isinstance(found, (int, float, Mapping))]


# --- the best weights -------------------------------------------------------------------------------------------------


def _best(rules: Rules, seen: Sequence[Measured], lost: Collection[int]) -> Measured | None:
    """The best of all: once superseded, weights never come back, so that those of two updates at a time are enough."""
    best, peak = None, None
    for each in seen:
        if each.within and (peak is None or each.judge > peak.judge):
            peak = each
        if each.step not in lost and (best is None or _supersedes(rules, each, best, peak)):
            best = each
    return best


def _supersedes(rules: Rules, new: Measured, old: Measured, peak: Measured | None) -> bool:
    """Whether `new` is better than the best so far; `peak` has the highest judge within the budget, and it must not be lost sight of step by step."""
    if new.within != old.within:
        return new.within
    if not new.within:
        return new.drift < old.drift
    assert peak is not None
    if new.judge > old.judge + noise(new, old, rules.judge):
        return True
    return new.drift < old.drift and new.judge >= peak.judge - noise(new, peak, rules.judge)


def noise(a: Measured, b: Measured, name: str) -> float:
    """Standard error of the mean difference on equal pairs; 0 where the records hold no single pairs."""
    ours, theirs = a.each.get(name) or [], b.each.get(name) or []
    differences = [x - y for x, y in zip(ours, theirs, strict=False) if x is not None and y is not None]
    n = len(differences)
    if n < 2:
        return 0.0
    mean = sum(differences) / n
    return math.sqrt(sum((each - mean) ** 2 for each in differences) / (n - 1) / n)


# --- the rules --------------------------------------------------------------------------------------------------------


def _overdrawn(rules: Rules, seen: Sequence[Measured]) -> Ending | None:
    latest = seen[-rules.stop.drift_patience :]
    if len(latest) < rules.stop.drift_patience or any(each.drift <= 1 for each in latest):
        return None
    worst = max(latest[-1].used, key=lambda name: latest[-1].used[name])
    share, allowed = latest[-1].used[worst], rules.stop.drift[worst]
    moved = "is not finite" if math.isinf(share) else f"has moved by {share * allowed:.4g} for the worse, and {allowed:g} were allowed"
    running = f", over budget for {len(latest)} measurements in a row" if len(latest) > 1 else ""
    return Ending("drift", f"the drift budget is spent: {worst} {moved}{running}")


def _no_better(rules: Rules, seen: Sequence[Measured]) -> Ending | None:
    patience, allowed = rules.stop.judge_patience, [each for each in seen if each.within]
    if patience is None:
        return None
    peak = max(allowed, key=lambda each: each.judge)  # the first of equals; the base model is always within
    since = sum(each.step > peak.step for each in seen)
    if since < patience:
        return None
    best = f"{peak.judge:.4g} at update {peak.step} is its best within the budget"
    return Ending("judge_patience", f"{rules.judge} has not got better for {since} measurements: {best}")


def _past_its_peak(rules: Rules, seen: Sequence[Measured]) -> Ending | None:
    patience = rules.stop.score_patience
    if patience is None or len(seen) < patience or not all(each.fallen for each in seen[-patience:]):
        return None
    peak, now = max((each for each in seen if math.isfinite(each.score)), key=lambda each: each.score), seen[-1]
    fall = f"{rules.score} has fallen from {peak.score:.4g} at update {peak.step} to {now.score:.4g}"
    return Ending("score_peak", f"{fall}, {patience} measurements in a row below its peak")
