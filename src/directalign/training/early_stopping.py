"""Early stopping and the best checkpoint: a pure function of the run's records.

So a resumed run stops at the same step. Every evaluation is compared with that of the base model at
step 0, on the samples that are evaluated during the run. It is within the budget while no metric of
`early_stopping.max_degradation` is worse by more than its allowance. With an empty budget and
`early_stopping.score_patience` set, it is within while the absolute score is at most two standard
errors (of the paired difference) below its peak. The best evaluation is the one within the budget
with the highest `metric_for_best`; of two that differ by less than the standard error of their
difference, the one that used less of the budget (one-standard-error rule, Breiman et al. 1984). If
none is within the budget, it is the one that exceeds it least.

Rank 0 has the records and decides; all ranks save and load the best weights, in
`best/step-NNNNNN/weights.safetensors`.
"""

import logging
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import config
from ..evaluation.in_training import judge_of, measured_metrics, score_of
from ..io import atomic
from ..io.checkpoint_files import WEIGHTS, step_of
from ..types import DirectAlignError
from . import checkpoint, run_log
from .checkpoint import TrainState
from .distributed import TorchProcessGroup
from .run_log import RunLog

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
CLEARLY = 2.0
"""Standard errors by which the absolute score must lie below its peak to count as fallen."""
END_EVENTS = ("stop", "kept")
"""Events of a finished run; a run that continues drops them."""
NOTHING = -1
"""Step before which no record is kept, not even the base model's."""


@dataclass(frozen=True)
class Rules:
    """The `early_stopping` section with resolved metric names; `better`: 1, -1, or 0 (none)."""

    settings: config.EarlyStoppingConfig
    metric: str
    score: str
    better: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation; a metric that is not finite counts as -inf, a degradation as over budget."""

    step: int
    metric: float
    score: float
    used: Mapping[str, float]
    """Share of its allowance by which each budgeted metric is worse: 1 is all of it."""
    each: Mapping[str, Sequence[float | None]]
    """Values of single samples by metric."""
    fallen: bool = False
    """Whether the score is clearly below its peak so far (with `score_patience`)."""

    @property
    def degradation(self) -> float:
        """The largest share of any budget, 0 without one."""
        return max(self.used.values(), default=0.0)

    @property
    def within(self) -> bool:
        """Within the budget; without one, not past the peak of the score."""
        return self.degradation <= 1 and (bool(self.used) or not self.fallen)


@dataclass(frozen=True)
class Verdict:
    """The best evaluation so far (None: no saved weights qualify) and why the run stops.

    `stop`: reason (drift, patience or score_peak) and message.
    """

    best: Evaluation | None
    last: Evaluation
    stop: tuple[str, str] | None

    def ends(self, done: int, run: config.RunConfig) -> bool:
        """Whether a rule ends the run before its last step, with weights to export."""
        return self.stop is not None and self.best is not None and done < run.train.num_steps


def rules_of(run: config.RunConfig) -> Rules | None:
    """The run's stop rules, None if it has none."""
    if run.early_stopping is None:
        return None
    better = {name: metric.better for name, metric in measured_metrics(run).items()}
    return Rules(run.early_stopping, judge_of(run), score_of(run), better)


def verdict(rules: Rules, records: Sequence[Record], lost: Collection[int] = ()) -> Verdict:
    """Apply the rules to a run's records; `lost` are steps whose weights no longer exist.

    Raises: DirectAlignError if the base model's evaluation lacks a metric that the rules read.
    """
    seen = evaluations(rules, records)
    stop = _over_budget(rules, seen) or _no_improvement(rules, seen) or _past_peak(rules, seen)
    return Verdict(_best(rules, seen, lost), seen[-1], stop)


def evaluations(rules: Rules, records: Sequence[Record]) -> list[Evaluation]:
    """The evaluations of a run in order, each compared with the base model's."""
    found = [record for record in records if record["event"] == "evaluate"]
    if not found or found[0]["step"] != 0:
        reason = "the base model was not measured (no evaluation of step 0 in metrics.jsonl)"
        raise DirectAlignError(f"early_stopping: {reason}; start a new run")
    base = found[0]
    for name in (rules.metric, rules.score, *rules.settings.max_degradation):
        if name not in base:
            skipped = ("step", "event", "seconds", "during", "each")
            names = ", ".join(key for key in base if key not in skipped)
            reason = f"{name} was not measured at step 0 (metrics.jsonl has {names})"
            raise DirectAlignError(f"early_stopping: {reason}; name one of these")
        if not math.isfinite(value(during(base), name)):
            reason = f"{name} of the base model is not finite"
            raise DirectAlignError(f"early_stopping: {reason}; name another metric")
    seen = list[Evaluation]()
    for record in found:
        now, each = during(record), record.get("each") or {}
        metric, used = value(now, rules.metric), used_shares(rules, now, during(base))
        metric = metric if math.isfinite(metric) else -math.inf
        new = Evaluation(record["step"], metric, value(now, rules.score), used, each)
        if rules.settings.score_patience is not None and seen:
            peak = max((e for e in seen if math.isfinite(e.score)), key=lambda each: each.score)
            tolerance = CLEARLY * standard_error(new, peak, rules.score)
            new = replace(new, fallen=not peak.score - new.score <= tolerance)
        seen.append(new)
    return seen


def used_shares(rules: Rules, now: Record, base: Record) -> dict[str, float]:
    """Share of its allowance by which each budgeted metric is worse; inf if it is not finite."""
    shares = {}
    for name, allowed in rules.settings.max_degradation.items():
        change, better = value(now, name) - value(base, name), rules.better.get(name, 0)
        worse = -better * change if better else abs(change)
        shares[name] = max(0.0, worse / allowed) if math.isfinite(worse) else math.inf
    return shares


def during(record: Record) -> Record:
    """The metrics on the samples that are evaluated during the run."""
    return {**record, **(record.get("during") or {})}


def value(record: Record, name: str) -> float:
    """A metric of a record (of a rate its value); nan if it is missing or not finite."""
    found = record.get(name)
    found = found.get("value") if isinstance(found, Mapping) else found
    return float(found) if isinstance(found, (int, float)) else math.nan


def standard_error(a: Evaluation, b: Evaluation, name: str) -> float:
    """Standard error of the mean difference on equal samples; 0 for fewer than two."""
    pairs = zip(a.each.get(name) or [], b.each.get(name) or [], strict=False)
    differences = [x - y for x, y in pairs if x is not None and y is not None]
    n = len(differences)
    if n < 2:
        return 0.0
    mean = sum(differences) / n
    return math.sqrt(sum((each - mean) ** 2 for each in differences) / (n - 1) / n)


def _best(rules: Rules, seen: Sequence[Evaluation], lost: Collection[int]) -> Evaluation | None:
    """The best evaluation. Once superseded it never returns: two saved weights suffice."""
    best, peak = None, None
    for each in seen:
        if each.within and (peak is None or each.metric > peak.metric):
            peak = each
        if each.step not in lost and (best is None or _supersedes(rules, each, best, peak)):
            best = each
    return best


def _supersedes(rules: Rules, new: Evaluation, old: Evaluation, peak: Evaluation | None) -> bool:
    """Whether `new` is better than the best so far; `peak` (highest metric) limits a decline."""
    if new.within != old.within:
        return new.within
    if not new.within:
        return new.degradation < old.degradation
    assert peak is not None
    if new.metric > old.metric + standard_error(new, old, rules.metric):
        return True
    tolerance = standard_error(new, peak, rules.metric)
    return new.degradation < old.degradation and new.metric >= peak.metric - tolerance


def _over_budget(rules: Rules, seen: Sequence[Evaluation]) -> tuple[str, str] | None:
    patience = rules.settings.degradation_patience
    latest = seen[-patience:]
    if len(latest) < patience or any(each.degradation <= 1 for each in latest):
        return None
    used = latest[-1].used
    worst = max(used, key=lambda name: used[name])
    allowed = rules.settings.max_degradation[worst]
    change = f"is worse by {used[worst] * allowed:.4g}, {allowed:g} is allowed"
    change = "is not finite" if math.isinf(used[worst]) else change
    times = f", over budget at {patience} evaluations in a row" if patience > 1 else ""
    return ("drift", f"max_degradation exceeded: {worst} {change}{times}")


def _no_improvement(rules: Rules, seen: Sequence[Evaluation]) -> tuple[str, str] | None:
    patience = rules.settings.patience
    if patience is None:
        return None
    # the first of equals; the base model is always within
    peak = max((each for each in seen if each.within), key=lambda each: each.metric)
    since = sum(each.step > peak.step for each in seen)
    if since < patience:
        return None
    text = f"{rules.metric} has not improved for {since} evaluations; best within the budget: "
    return ("patience", f"{text}{peak.metric:.4g} at step {peak.step}")


def _past_peak(rules: Rules, seen: Sequence[Evaluation]) -> tuple[str, str] | None:
    patience = rules.settings.score_patience
    if patience is None or len(seen) < patience or not all(e.fallen for e in seen[-patience:]):
        return None
    peak = max((e for e in seen if math.isfinite(e.score)), key=lambda each: each.score)
    fall = f"{rules.score} fell from {peak.score:.4g} at step {peak.step} to {seen[-1].score:.4g}"
    return ("score_peak", f"{fall}, {patience} evaluations in a row below its peak")


def best_path(out: Path, step: int) -> Path:
    """`best/step-000040` for step 40."""
    return checkpoint.path_of(out / "best", step)


def best_steps(out: Path) -> list[int]:
    """Steps of the saved best weights, rising."""
    return [step_of(path) for path in checkpoint.all_of(out / "best")]


def save_best(
    out: Path, parameters: Mapping[str, nn.Parameter], step: int, group: TorchProcessGroup
) -> None:
    """Save the present weights, on all ranks; a failed attempt leaves no files.

    Raises: DirectAlignError if the disk is full or not writable.
    """
    checkpoint.write_atomic(
        best_path(out, step),
        lambda partial: checkpoint.write_tensors(partial, {WEIGHTS: parameters}, group),
        group,
        "free some space and continue with --resume",
        "best weights",
    )


@dataclass
class EarlyStopping:
    """Applies the rules during a run; `log` is None on ranks other than 0."""

    rules: Rules
    out: Path
    group: TorchProcessGroup
    state: TrainState
    log: RunLog | None
    lost: Collection[int] = ()
    is_over: bool = field(default=False, init=False)
    """Whether a rule has ended the run."""

    def verdict(self) -> Verdict | None:
        """The verdict on the run so far; None on ranks other than 0."""
        return verdict(self.rules, self.log.records, self.lost) if self.log is not None else None

    def apply(self, done: int) -> None:
        """Save the weights if they are the best so far, then decide whether the run ends.

        Call after the evaluation of step `done`, with the evaluated weights in place.
        """
        found = self.verdict()
        best = found.best.step if found is not None and found.best is not None else None
        if self.group.any(best == done and not best_path(self.out, done).exists()):
            save_best(self.out, self.state.parameters, done, self.group)
        if best is not None:
            for step in set(best_steps(self.out)) - {best, *self._best_at_checkpoints()}:
                shutil.rmtree(best_path(self.out, step))
        self.is_over = self.group.any(found is not None and found.ends(done, self.state.run))

    def _best_at_checkpoints(self) -> set[int]:
        """Steps that were best at one of the checkpoints: a resume from it needs their weights."""
        assert self.log is not None
        steps = set()
        for path in checkpoint.all_of(self.out / "checkpoints"):
            step = step_of(path)
            earlier = [record for record in self.log.records if record["step"] <= step]
            best = verdict(self.rules, earlier, self.lost).best if earlier else None
            steps |= {best.step} if best is not None else set()
        return steps

    def load_best(self) -> int:
        """Load the best weights on all ranks; returns their step.

        Raises: DirectAlignError if they are damaged.
        """
        found, group = self.verdict(), self.group
        own = str(found.best.step) if found is not None and found.best is not None else ""
        step = int(group.gather_texts(own)[0])
        folder = best_path(self.out, step)
        damage = group.first_text(atomic.damage(folder, group.rank, group.size) or "")
        if damage:
            raise DirectAlignError(
                f"{folder}: damaged ({damage}); continue with --resume --out {self.out}, which "
                "exports the best of the other weights"
            )
        checkpoint.read_tensors(folder, {WEIGHTS: self.state.parameters})
        return step


def stop_record(found: Verdict, done: int) -> dict[str, Any]:
    """The record of a run that a rule ends after `done` steps."""
    assert found.stop is not None and found.best is not None
    reason, message = found.stop
    values = {"reason": reason, "says": message, "kept": found.best.step}
    return {"event": "stop", "step": done, **values}


def resume_state(
    rules: Rules | None, run: config.RunConfig, out: Path, done: int
) -> tuple[frozenset[int], tuple[str, ...]]:
    """(lost, dropped) of a run after `done` steps, under the rules of now.

    `lost`: evaluated steps without weights, if the best is among them; `dropped`: end events of an
    earlier process that no longer hold. Best weights beyond `done` and damaged ones are removed.
    """
    if rules is None:
        return frozenset(), END_EVENTS
    atomic.sweep(out / "best")
    for step in best_steps(out):
        path, is_later = best_path(out, step), step > done or not done
        damage = None if is_later else atomic.damage(path)
        if damage is not None:
            logger.warning(f"removed damaged weights: {path} ({damage}); the best others are used")
        if is_later or damage is not None:
            shutil.rmtree(path)
    if not done:
        return frozenset(), END_EVENTS
    records = [record for record in run_log.read(out) if record["step"] <= done]
    best, saved = verdict(rules, records).best, {done, *best_steps(out)}
    evaluated = {record["step"] for record in records if record["event"] == "evaluate"}
    is_saved = best is not None and best.step in saved
    lost = frozenset() if is_saved else frozenset(evaluated - saved)
    found = verdict(rules, records, lost)
    is_over, best = found.ends(done, run), found.best
    stops, exported = ([r for r in records if r["event"] == event] for event in END_EVENTS)
    holds = {
        "stop": is_over and stops == [stop_record(found, done)],
        "kept": (is_over or done == run.train.num_steps)
        and [record["step"] for record in exported] == [best.step if best else None],
    }
    return lost, tuple(event for event in END_EVENTS if not holds[event])


def summary_lines(
    rules: Rules, records: Sequence[Record], found: Verdict, done: int, num_steps: int
) -> Iterator[tuple[int, str]]:
    """The last log lines (level, text): why the run stopped, what is exported, warnings."""
    exported, stopped = run_log.last(records, "kept"), run_log.last(records, "stop")
    base = next(record for record in records if record["event"] == "evaluate")
    assert exported is not None
    budget = rules.settings.max_degradation
    if stopped is not None:
        reason = f"stopped after step {done} of {num_steps}: {stopped['says']}"
        yield logging.INFO, f"{reason}; to continue, change early_stopping and use --resume"
    changes = ", ".join(
        f"{name} {value(base, name):.4g} -> {value(exported, name):.4g}"
        if math.isfinite(value(exported, name))
        else f"{name} is not finite"
        for name in dict.fromkeys((rules.metric, *budget))
    )
    yield logging.INFO, f"exported the weights of step {exported['step']}: {changes}"
    used = used_shares(rules, exported, base)
    over = {name: share for name, share in used.items() if share > 1}
    if exported["step"] == 0:
        both = "both within early_stopping.max_degradation and " if budget else ""
        warning = f"no step was {both}better by {rules.metric}: exported the base model; lower "
        warning += "train.learning_rate or evaluate.every, or raise max_degradation"
    elif found.best is not None and not found.best.within:
        warning = "no saved weights are within early_stopping.max_degradation: exported those that "
        warning += f"exceed it least, by {', '.join(over)}"
    elif over:
        spent = ", ".join(f"{name} uses {share:.0%} of its budget" for name, share in over.items())
        warning = f"on all samples {spent}; raise evaluate.num_samples_during or lower "
        warning += "early_stopping.max_degradation"
    else:
        return
    yield logging.WARNING, warning


def kept_summary(run: config.RunConfig, history: Sequence[Record]) -> dict[str, Any] | None:
    """For summary.json: exported step, metric, used share of each budget; None without rules."""
    rules, exported = rules_of(run), run_log.last(history, "kept")
    base = next((record for record in history if record["event"] == "evaluate"), None)
    if rules is None or exported is None or base is None or base["step"] != 0:
        return None
    used = used_shares(rules, exported, base)
    return {"step": exported["step"], "judge": rules.metric, "used": used}
