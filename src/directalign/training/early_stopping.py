"""Early stopping and the best checkpoint: a pure function of the run's records, so that a resumed run stops where it would have.

All comparisons are with the base model's evaluation at step 0, on the pairs that are evaluated during the run. An evaluation
is within the budget while no number of `early_stopping.max_degradation` is worse by more than its allowance; where `early_stopping.max_degradation` is empty and
`early_stopping.score_patience` is set, while the absolute score is not more than two standard errors (of the paired difference) below
its peak. Best: of the evaluations within the budget the highest judge; where two judges differ by less than the standard
error of their difference, the one that used less of the budget (the one-standard-error rule, Breiman et al. 1984). If none
is within the budget, the one that exceeds it least.

Rank 0 has the records and decides; all ranks save and load the best weights, in `best/step-NNNNNN/weights.safetensors`.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .. import config
from ..evaluation.in_training import judge_of, measured_metrics, score_of
from ..io import atomic
from ..types import DirectAlignError
from . import checkpoint, run_log
from .checkpoint import WEIGHTS, TrainState
from .distributed import TorchProcessGroup
from .run_log import RunLog

logger = logging.getLogger(__name__)

Reason = Literal["drift", "patience", "score_peak"]
CLEARLY = 2.0
"""Standard errors by which the absolute score must lie below its peak to have fallen."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """The `stop` section with resolved metric names, and which direction of each metric is better."""

    settings: config.EarlyStoppingConfig
    judge: str
    score: str
    better: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: a judge that is not finite counts as -inf, a drift that is not finite as over any budget."""

    step: int
    judge: float
    score: float
    used: Mapping[str, float]
    """Share of its allowance by which each budgeted number is worse: 1 is all of it."""
    each: Mapping[str, Sequence[float | None]]
    fallen: bool = False
    """Whether the absolute score is clearly below its peak so far (with `early_stopping.score_patience`)."""

    @property
    def drift(self) -> float:
        """The largest share of any budget, 0 without one."""
        return max(self.used.values(), default=0.0)

    @property
    def within(self) -> bool:
        """Within the budget, or where there is none not past the peak of the score."""
        return self.drift <= 1 and (bool(self.used) or not self.fallen)


@dataclass(frozen=True)
class StopReason:
    """Why a stop rule ended the run."""

    reason: Reason
    says: str


@dataclass(frozen=True)
class Verdict:
    """The best evaluation so far and whether a rule ends the run."""

    best: Evaluation | None
    """None while no saved weights qualify."""
    last: Evaluation
    ending: StopReason | None


def rules_of(run: config.RunConfig) -> Rules | None:
    """The run's stop rules, None where it has none."""
    return (
        Rules(
            run.early_stopping,
            judge_of(run),
            score_of(run),
            {name: each.better for name, each in measured_metrics(run).items()},
        )
        if run.early_stopping is not None
        else None
    )


def verdict(rules: Rules, records: Sequence[Record], lost: Collection[int] = ()) -> Verdict:
    """Apply the rules to the records of a run; `lost` are steps whose weights no longer exist.

    Raises: DirectAlignError where the base model was not measured, or not by a number that the rules read.
    """
    seen = measurements(rules, records)
    return Verdict(
        _best(rules, seen, lost),
        seen[-1],
        _budget_exceeded(rules, seen) or _no_improvement(rules, seen) or _past_peak(rules, seen),
    )


def measurements(rules: Rules, records: Sequence[Record]) -> list[Evaluation]:
    """The evaluations of a run in order, each compared with the first, that of the base model."""
    found = [record for record in records if record["event"] == "evaluate"]
    if not found or found[0]["step"] != 0:
        raise DirectAlignError(
            "early_stopping: the base model was not measured (no record of step 0 in metrics.jsonl), and drift is counted from there; start a new run"
        )
    base = found[0]
    for name in (rules.judge, rules.score, *rules.settings.max_degradation):
        if name not in base:
            raise DirectAlignError(
                f"early_stopping: {name} was not measured at step 0 (metrics.jsonl has {', '.join(_numbers(base))}); name one of these"
            )
        if not math.isfinite(value(during(base), name)):
            raise DirectAlignError(
                f"early_stopping: {name} of the base model is not finite, and changes are counted from it; name another number"
            )
    seen = [_evaluation(rules, record, base) for record in found]
    return seen if rules.settings.score_patience is None else _mark_falls(rules, seen)


def _mark_falls(rules: Rules, seen: Sequence[Evaluation]) -> list[Evaluation]:
    """Set `fallen` by comparison with the highest score before each evaluation."""
    marked, peak = list[Evaluation](), seen[0]
    for each in seen:
        marked.append(
            replace(
                each, fallen=not peak.score - each.score <= CLEARLY * noise(each, peak, rules.score)
            )
        )
        peak = each if each.score > peak.score else peak
    return marked


def _evaluation(rules: Rules, record: Record, base: Record) -> Evaluation:
    now, then = during(record), during(base)
    judge = value(now, rules.judge)
    return Evaluation(
        record["step"],
        judge if math.isfinite(judge) else -math.inf,
        value(now, rules.score),
        shares(rules, now, then),
        record.get("each") or {},
    )


def shares(rules: Rules, now: Record, base: Record) -> dict[str, float]:
    """Share of its allowance by which each budgeted number is worse than the base model's on the same pairs."""
    return {
        name: _share(value(now, name) - value(base, name), rules.better.get(name, 0), allowed)
        for name, allowed in rules.settings.max_degradation.items()
    }


def during(record: Record) -> Record:
    """The numbers on the pairs that are evaluated during the run; others are the same for all pairs."""
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
    return [
        name
        for name, found in record.items()
        if name not in ("step", "event", "seconds", "during", "each")
        and isinstance(found, (int, float, Mapping))
    ]


# --- the best weights -------------------------------------------------------------------------------------------------


def _best(rules: Rules, seen: Sequence[Evaluation], lost: Collection[int]) -> Evaluation | None:
    """The best evaluation; once superseded it never returns, so that two saved weights at a time suffice."""
    best, peak = None, None
    for each in seen:
        if each.within and (peak is None or each.judge > peak.judge):
            peak = each
        if each.step not in lost and (best is None or _supersedes(rules, each, best, peak)):
            best = each
    return best


def _supersedes(rules: Rules, new: Evaluation, old: Evaluation, peak: Evaluation | None) -> bool:
    """Whether `new` is better than the best so far. `peak`, the highest judge within the budget, bounds a slow decline."""
    if new.within != old.within:
        return new.within
    if not new.within:
        return new.drift < old.drift
    assert peak is not None
    if new.judge > old.judge + noise(new, old, rules.judge):
        return True
    return new.drift < old.drift and new.judge >= peak.judge - noise(new, peak, rules.judge)


def noise(a: Evaluation, b: Evaluation, name: str) -> float:
    """Standard error of the mean difference on equal pairs; 0 where the records hold no single pairs."""
    ours, theirs = a.each.get(name) or [], b.each.get(name) or []
    differences = [
        x - y for x, y in zip(ours, theirs, strict=False) if x is not None and y is not None
    ]
    n = len(differences)
    if n < 2:
        return 0.0
    mean = sum(differences) / n
    return math.sqrt(sum((each - mean) ** 2 for each in differences) / (n - 1) / n)


# --- the rules --------------------------------------------------------------------------------------------------------


def _budget_exceeded(rules: Rules, seen: Sequence[Evaluation]) -> StopReason | None:
    latest = seen[-rules.settings.degradation_patience :]
    if len(latest) < rules.settings.degradation_patience or any(each.drift <= 1 for each in latest):
        return None
    worst = max(latest[-1].used, key=lambda name: latest[-1].used[name])
    share, allowed = latest[-1].used[worst], rules.settings.max_degradation[worst]
    moved = (
        "is not finite"
        if math.isinf(share)
        else f"has moved by {share * allowed:.4g} for the worse, and {allowed:g} were allowed"
    )
    running = f", over budget for {len(latest)} measurements in a row" if len(latest) > 1 else ""
    return StopReason("drift", f"the drift budget is spent: {worst} {moved}{running}")


def _no_improvement(rules: Rules, seen: Sequence[Evaluation]) -> StopReason | None:
    patience, allowed = rules.settings.patience, [each for each in seen if each.within]
    if patience is None:
        return None
    peak = max(
        allowed, key=lambda each: each.judge
    )  # the first of equals; the base model is always within
    since = sum(each.step > peak.step for each in seen)
    if since < patience:
        return None
    best = f"{peak.judge:.4g} at update {peak.step} is its best within the budget"
    return StopReason(
        "patience", f"{rules.judge} has not got better for {since} measurements: {best}"
    )


def _past_peak(rules: Rules, seen: Sequence[Evaluation]) -> StopReason | None:
    patience = rules.settings.score_patience
    if (
        patience is None
        or len(seen) < patience
        or not all(each.fallen for each in seen[-patience:])
    ):
        return None
    peak, now = (
        max((each for each in seen if math.isfinite(each.score)), key=lambda each: each.score),
        seen[-1],
    )
    fall = (
        f"{rules.score} has fallen from {peak.score:.4g} at update {peak.step} to {now.score:.4g}"
    )
    return StopReason("score_peak", f"{fall}, {patience} measurements in a row below its peak")


BEST = "best"


def best_path(out: Path, step: int) -> Path:
    """`best/step-000040` for step 40."""
    return checkpoint.path_of(out / BEST, step)


def save_best(
    out: Path, parameters: Mapping[str, nn.Parameter], step: int, ranks: TorchProcessGroup
) -> None:
    """Save the present weights, all ranks together; a failed attempt leaves nothing behind.

    Raises: DirectAlignError for a disk that is full or that cannot be written to.
    """
    fill, rest = (
        lambda partial: checkpoint.write_tensors(partial, {WEIGHTS: parameters}, ranks),
        "free some space and go on with --resume",
    )
    checkpoint.write_sealed(best_path(out, step), fill, ranks, rest, "best weights")


def read_best(
    out: Path, parameters: Mapping[str, nn.Parameter], step: int, ranks: TorchProcessGroup
) -> None:
    """Load the best weights of `step` into `parameters`.

    Raises: DirectAlignError where they are damaged.
    """
    folder = best_path(out, step)
    trouble = next(
        filter(None, ranks.texts(atomic.damage(folder, ranks.rank, ranks.size) or "")), None
    )
    if trouble is not None:
        raise DirectAlignError(
            f"{folder}: damaged ({trouble}); continue with --resume --out {out}: the best of the others is left instead"
        )
    checkpoint.read_tensors(folder, {WEIGHTS: parameters})


def best_steps(out: Path) -> list[int]:
    """The updates whose weights are there, rising."""
    return [checkpoint.step_of(path) for path in checkpoint.all_of(out / BEST)]


def sweep_best(out: Path, done: int) -> set[int]:
    """Remove best weights beyond `done` steps, and damaged ones with a warning; returns the remaining steps."""
    atomic.sweep(out / BEST)
    for step in best_steps(out):
        trouble = atomic.damage(best_path(out, step)) if step <= done else None
        if trouble is not None:
            logger.warning(
                f"damaged weights removed: {best_path(out, step)} ({trouble}). The best of the others will be kept"
            )
        if step > done or trouble is not None:
            shutil.rmtree(best_path(out, step))
    return set(best_steps(out))


def drop_best(out: Path, needed: Collection[int]) -> None:
    """Remove the weights of all other updates."""
    for step in best_steps(out):
        if step not in needed:
            shutil.rmtree(best_path(out, step))


OF_AN_END = ("stop", "kept")
"""Events of a run that is over; when it goes on after all, they are forgotten."""
NOTHING = -1
"""Step that drops all records of an earlier process, those of the base model included."""


@dataclass
class EarlyStopping:
    """Applies the rules during a run; `log` is None on ranks other than 0."""

    rules: Rules
    out: Path
    ranks: TorchProcessGroup
    state: TrainState
    log: RunLog | None
    lost: Collection[int] = ()
    over: bool = field(default=False, init=False)
    """Whether the run has ended itself."""

    def verdict(self) -> Verdict | None:
        """The verdict on the run so far; None on ranks other than 0."""
        return verdict(self.rules, self.log.records, self.lost) if self.log is not None else None

    def verdict_on_rank_0(self) -> Verdict:
        """As `verdict`, where rank 0 calls it."""
        found = self.verdict()
        assert found is not None, "only rank 0 has the records"
        return found

    def apply(self, done: int) -> None:
        """Call after the evaluation of step `done` with those weights active: save them if they are the best, then decide."""
        found = self.verdict()
        best = found.best.step if found is not None and found.best is not None else None
        if self.ranks.any(best == done and not best_path(self.out, done).exists()):
            save_best(self.out, self.state.parameters, done, self.ranks)
        if best is not None:
            drop_best(self.out, {best, *self._still_chosen()})
        self.over = self.ranks.any(found is not None and stops(found, done, self.state.run))

    def _still_chosen(self) -> set[int]:
        """Steps that are the best so far at one of the checkpoints: a resume from it needs their weights."""
        assert self.log is not None
        chosen = set()
        for path in checkpoint.all_of(self.out / "checkpoints"):
            earlier = records_until(self.log.records, checkpoint.step_of(path))
            found = verdict(self.rules, earlier, self.lost).best if earlier else None
            chosen |= {found.step} if found is not None else set()
        return chosen

    def load_best(self) -> int:
        """Load the best weights on all ranks; returns their step."""
        found = self.verdict()
        step = int(
            self.ranks.texts(
                str(found.best.step) if found is not None and found.best is not None else ""
            )[0]
        )
        read_best(self.out, self.state.parameters, step, self.ranks)
        return step


def stops(found: Verdict, done: int, run: config.RunConfig) -> bool:
    """Whether a rule ends the run after `done` steps: before its last one, and with weights to export."""
    return found.ending is not None and found.best is not None and done < run.train.num_steps


def stop_record(found: Verdict, done: int) -> dict[str, Any]:
    """The record of a run that a rule ends after `done` steps."""
    assert found.ending is not None and found.best is not None
    return {
        "event": "stop",
        "step": done,
        "reason": found.ending.reason,
        "says": found.ending.says,
        "kept": found.best.step,
    }


@dataclass(frozen=True)
class ResumeState:
    """What a resumed run keeps of its earlier best weights and end."""

    lost: frozenset[int] = frozenset()
    """Evaluated steps whose weights are gone, if the best one is among them."""
    forgotten: tuple[str, ...] = OF_AN_END
    """Events of an earlier end that no longer holds."""


def resume_state(rules: Rules | None, run: config.RunConfig, out: Path, done: int) -> ResumeState:
    """What still holds of an earlier process after `done` steps; changed rules may invalidate its end."""
    if rules is None:
        return ResumeState()
    there = sweep_best(out, done if done else NOTHING)
    if not done:
        return ResumeState()
    records = records_until(run_log.read(out), done)
    best = verdict(rules, records).best
    measured = {record["step"] for record in records if record["event"] == "evaluate"}
    lost = (
        frozenset()
        if best is not None and best.step in {done, *there}
        else frozenset(measured - there - {done})
    )
    found = verdict(rules, records, lost)
    over = stops(found, done, run)
    former = {
        event: [record for record in records if record["event"] == event] for event in OF_AN_END
    }
    holds = {
        "early_stopping": over and former["early_stopping"] == [stop_record(found, done)],
        "kept": (over or done == run.train.num_steps)
        and [record["step"] for record in former["kept"]]
        == [found.best.step if found.best else None],
    }
    return ResumeState(lost, tuple(event for event in OF_AN_END if not holds[event]))


def records_until(records: Sequence[Record], step: int) -> list[Record]:
    """The records of the first `step` updates."""
    return [record for record in records if record["step"] <= step]


def summary_lines(
    rules: Rules, records: list[dict[str, Any]], found: Verdict, done: int, num_steps: int
) -> Iterator[tuple[int, str]]:
    """The last lines of a run by logging level: why it stopped, which weights are exported, and their problems."""
    left = next(record for record in reversed(records) if record["event"] == "kept")
    base = next(record for record in records if record["event"] == "evaluate")
    stopped = next((record for record in reversed(records) if record["event"] == "stop"), None)
    if stopped is not None:
        yield (
            logging.INFO,
            f"stopped itself after update {done} of {num_steps}: {stopped['says']}; to go on from there change stop and use --resume",
        )
    yield (
        logging.INFO,
        f"left are the weights of update {left['step']}: {', '.join(_moved(name, base, left) for name in dict.fromkeys((rules.judge, *rules.settings.max_degradation)))}",
    )
    used = shares(rules, left, base)
    over = [name for name, share in used.items() if share > 1]
    if left["step"] == 0:
        remedy = "lower train.learning_rate, measure more often (evaluate.every), or raise early_stopping.max_degradation"
        yield logging.WARNING, f"{_nothing(rules)}: the base model is left as it was; {remedy}"
    elif found.best is not None and not found.best.within:
        yield (
            logging.WARNING,
            f"no weights that could be kept are within the budget (early_stopping.max_degradation): those that overdraw it least are left, {', '.join(over)} over it",
        )
    elif over:
        spent = ", ".join(f"{name} uses {used[name]:.0%} of its budget" for name in over)
        yield (
            logging.WARNING,
            f"on all pairs {spent}; measure more pairs (evaluate.num_samples_during) or lower early_stopping.max_degradation",
        )


def _nothing(rules: Rules) -> str:
    return (
        f"no update was both within the budget (early_stopping.max_degradation) and better by {rules.judge}"
        if rules.settings.max_degradation
        else f"no update was better by {rules.judge}"
    )


def _moved(name: str, base: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    before, after = value(base, name), value(left, name)
    return (
        f"{name} {before:.4g} -> {after:.4g}" if math.isfinite(after) else f"{name} is not finite"
    )


def kept_summary(run: config.RunConfig, history: Sequence[Record]) -> dict[str, Any] | None:
    """For summary.json: the exported step, the judge, and the share of each drift budget used on all pairs; None without stop rules."""
    rules = rules_of(run)
    left = next((record for record in reversed(history) if record["event"] == "kept"), None)
    base = next((record for record in history if record["event"] == "evaluate"), None)
    if rules is None or left is None or base is None or base["step"] != 0:
        return None
    return {"step": left["step"], "judge": rules.judge, "used": shares(rules, left, base)}
