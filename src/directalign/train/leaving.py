"""What a run leaves when it is over: its last weights, or with stop rules its best, measured on all pairs, and a word on why and which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..rewards.distributed import synchronized_call
from . import ending, sharding
from .loop import Job, finished_weights, saving_what_was_done
from .stopping import Record, Rules, Verdict, shares, value


def leave_weights(job: Job, done: int) -> None:
    """Save the weights of a run that is over after `done` updates; with stop rules the best ones, and records of them and of its end.

    Raises: DirectAlignError for best weights that were damaged meanwhile, or a reward that does not answer; `--resume` makes up for both.
    """
    if job.stopping is None:
        with finished_weights(job):
            sharding.save(job.family, job.out, job.ranks)
        return
    if job.log is not None and job.stopping.over:
        _write_once(job, ending.stop_record(_verdict(job), done))
    step = job.stopping.wear_best()
    sharding.save(job.family, job.out, job.ranks)
    with saving_what_was_done(job, done):
        _measure_kept(job, step)
    if job.log is not None:
        for line in told(job.stopping.rules, job.log.records, _verdict(job), done, job.run.train.num_steps):
            job.display.say(line)


def _verdict(job: Job) -> Verdict:
    found = job.stopping.verdict() if job.stopping is not None else None
    assert found is not None, "rank 0 decides"
    return found


def _write_once(job: Job, record: dict[str, Any]) -> None:
    assert job.log is not None
    if not job.log.has(record["event"], record["step"]):
        job.log.write(record)


def _measure_kept(job: Job, step: int) -> None:
    """Record the numbers of the weights that are left on all pairs; those of the base model or of the last update are there already."""
    there = _on_all_pairs(job, step) if job.log is not None else None
    if not job.ranks.any(job.log is not None and there is None):
        numbers = there
    else:
        numbers = synchronized_call(lambda: job.measurer.measure(job.run.evaluate.num_pairs), job.ranks)
    if job.log is not None and numbers is not None:
        _write_once(job, {"event": "kept", "step": step, **{name: found for name, found in numbers.items() if name not in ("event", "step", "during", "each")}})


def _on_all_pairs(job: Job, step: int) -> Record | None:
    assert job.log is not None
    settings = job.run.evaluate
    found = [record for record in job.log.records if record["step"] == step and record["event"] in ("evaluate", "kept")]
    return next((record for record in reversed(found) if record["event"] == "kept" or "during" in record or settings.num_pairs <= settings.pairs_during), None)


def told(rules: Rules, records: list[dict[str, Any]], found: Verdict, done: int, num_steps: int) -> Iterator[str]:
    """What the last lines of a run say: why it ended, whose weights are left, and what is amiss with them."""
    left = next(record for record in reversed(records) if record["event"] == "kept")
    base = next(record for record in records if record["event"] == "evaluate")
    stopped = next((record for record in reversed(records) if record["event"] == "stop"), None)
    if stopped is not None:
        yield f"stopped itself after update {done} of {num_steps}: {stopped['says']}; to go on from there change stop and use --resume"
    yield f"left are the weights of update {left['step']}: {', '.join(_moved(name, base, left) for name in dict.fromkeys((rules.judge, *rules.stop.drift)))}"
    used = shares(rules, left, base)
    over = [name for name, share in used.items() if share > 1]
    if left["step"] == 0:
        remedy = "lower train.learning_rate, measure more often (evaluate.every), or raise stop.drift"
        yield f"warning: {_nothing(rules)}: the base model is left as it was; {remedy}"
    elif found.best is not None and not found.best.within:
        yield f"warning: no weights that could be kept are within the budget (stop.drift): those that overdraw it least are left, {', '.join(over)} over it"
    elif over:
        spent = ", ".join(f"{name} uses {used[name]:.0%} of its budget" for name in over)
        yield f"warning: on all pairs {spent}; measure more pairs (evaluate.pairs_during) or lower stop.drift"


def _nothing(rules: Rules) -> str:
    return f"no update was both within the budget (stop.drift) and better by {rules.judge}" if rules.stop.drift else f"no update was better by {rules.judge}"


def _moved(name: str, base: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    before, after = value(base, name), value(left, name)
    return f"{name} {before:.4g} -> {after:.4g}" if math.isfinite(after) else f"{name} is not finite"
