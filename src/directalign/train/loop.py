"""The loop: update, average, record; now and then a checkpoint, a sample grid, a measurement.

    for step in range(first, num_steps):
        for loss in method.losses(batch):      # step.py
            loss.value.backward()
        clip; step; ema; log

Updates are counted from 0 where they are drawn from (`Batch.step`) and by how many are done where they are recorded. A
checkpoint is written before the grid and the measurement of the same step: a run that is killed there makes up for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .. import config
from ..interfaces import Family
from ..rewards.distributed import SynchronizedError, synchronized_call
from ..types import DirectAlignError, NonFiniteError
from . import checkpoint, kept, random_state, samples
from .distributed import Ranks
from .ending import Stopping
from .feed import Feed
from .interrupt import Interrupted, StopRequest
from .log import RunLog
from .optim import learning_rate, set_learning_rate
from .progress import Display
from .snapshot import Parts
from .step import Updater


@runtime_checkable
class Measures(Protocol):
    """What the loop asks of `evaluate.measure.Measurer`."""

    def prepare(self) -> None:
        """Called once, while the weights are those of the base model."""
        ...

    def measure(self, num_pairs: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Job:
    """Everything that the loop touches. `shown` are the prompts of the sample grids; `log` is None on ranks other than 0, which write no records."""

    run: config.Run
    out: Path
    ranks: Ranks
    parts: Parts
    updater: Updater
    feed: Feed
    family: Family
    shown: Sequence[str]
    measurer: Measures
    log: RunLog | None
    display: Display
    stopping: Stopping | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run has ended itself."""
        return self.stopping is not None and self.stopping.over

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"


def train(job: Job, done: int) -> int:
    """Go from `done` updates to `train.num_steps`, or to where the run's stop rules end it, of which there is a checkpoint; the updates that are done.

    Raises:
        Interrupted: SIGINT or SIGTERM; the state is in a checkpoint.
        NonFiniteError: from `Updater.update`, with the checkpoint that is left.
        DirectAlignError: whatever else ends an update or a measurement, a reward that does not answer before all; what was done
            before it is in a checkpoint, unless one of several ranks fails by itself.
    """
    num_steps = job.run.train.num_steps
    with StopRequest() as stop:
        look(job, done)
        settle(job, done)
        while done < num_steps and not job.is_over:
            step, done = done, done + 1
            with saving_what_was_done(job, step):
                record = take_step(job, step)
            _write(job, record)
            stopped = job.ranks.any(stop.received is not None)
            if stopped or _due(done, job.run.train.checkpoint_every, num_steps):
                _checkpoint(job, done)
            if stopped:
                raise Interrupted(f"stopped by {stop.received or 'another rank'} after step {done} of {num_steps}; continue with --resume --out {job.out}")
            with saving_what_was_done(job, done):
                if look(job, done):
                    settle(job, done)
    if job.is_over and not _has_checkpoint(job, done):
        _checkpoint(job, done)
    return done


@contextmanager
def saving_what_was_done(job: Job, done: int) -> Iterator[None]:
    """Whatever fails inside leaves a checkpoint of the state after `done` updates, of which an update that fails changes the method's memory alone."""
    memory = dict(job.parts.method.state_dict())
    try:
        yield
    except (NonFiniteError, Interrupted):
        raise
    except DirectAlignError as error:
        if done == 0 or not (job.ranks.size == 1 or isinstance(error, SynchronizedError)):
            raise
        job.parts.method.load_state_dict(memory)
        if not _has_checkpoint(job, done):
            _checkpoint(job, done)
        raise DirectAlignError(f"{error}; step {done} of {job.run.train.num_steps} is saved: continue with --resume --out {job.out}") from error


def take_step(job: Job, step: int) -> dict[str, Any]:
    """Update number `step` (from 0) with everything that belongs to it; its record."""
    start = time.perf_counter()
    rate = learning_rate(job.run.train, step)
    set_learning_rate(job.parts.optimizer, rate)
    random_state.seed_step(job.run.seed, step)
    try:
        measured = job.updater.update(step + 1, job.feed.batches(step))
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_last_good(job)}") from error
    if job.parts.average is not None:
        job.parts.average.update()
    return {"event": "step", "step": step + 1, **measured, "learning_rate": rate, "seconds": time.perf_counter() - start}


def look(job: Job, done: int) -> bool:
    """The sample grid and the measurement that are due after `done` updates and not yet there; training does not notice. Whether a measurement was due.

    All ranks take part in making the images, and rank 0, which has the records, says what there is already.
    """
    settings, num_steps, log = job.run, job.run.train.num_steps, job.log
    grid_due = _due(done, settings.train.sample_every, num_steps)
    measurement_due = _due(done, settings.evaluate.every, num_steps)
    if not (grid_due or measurement_due):
        return False
    due = measurement_due
    grid_due = job.ranks.any(grid_due and log is not None and not samples.path_of(job.out, done).exists())
    measurement_due = job.ranks.any(measurement_due and log is not None and not log.has("evaluate", done))
    with finished_weights(job):
        if grid_due:
            _draw_grid(job, done)
        if measurement_due:
            _measure(job, done)
    return due


def settle(job: Job, done: int) -> None:
    """Let the run's stop rules decide on the records of `done` updates, and keep the weights if they are the best so far."""
    if job.stopping is not None:
        with finished_weights(job):
            job.stopping.settle(done)


@contextmanager
def finished_weights(job: Job) -> Iterator[None]:
    """The weights that are shown, measured and saved: the average where there is one."""
    with ExitStack() as stack:
        if job.parts.average is not None:
            stack.enter_context(job.parts.average.swapped_in())
        yield


def _draw_grid(job: Job, done: int) -> None:
    picture = samples.grid(job.family, job.run, job.shown, job.ranks)
    if job.log is not None:
        samples.save(picture, samples.path_of(job.out, done))
        job.log.grid(done, picture)


def _measure(job: Job, done: int) -> None:
    """All pairs before and after, some of them during the run."""
    settings = job.run.evaluate
    whole = done in (0, job.run.train.num_steps)
    num_pairs = settings.num_pairs if whole else min(settings.pairs_during, settings.num_pairs)
    measured = synchronized_call(lambda: job.measurer.measure(num_pairs), job.ranks)
    if job.log is not None:
        record = {"event": "evaluate", "step": done, **measured}
        job.log.write(record)
        verdict = job.stopping.verdict() if job.stopping is not None else None
        job.display.measured(record, verdict.last.used if verdict is not None else None)


def _due(done: int, every: int, num_steps: int) -> bool:
    """First, last, and every `every` updates in between (0: never in between)."""
    return done in (0, num_steps) or (every > 0 and done % every == 0)


def _write(job: Job, record: dict[str, Any]) -> None:
    if job.log is not None:
        job.log.write(record)
    job.display.step(record)


def _checkpoint(job: Job, done: int) -> None:
    if job.log is not None:
        job.log.sync()
    checkpoint.save(job.checkpoints, job.parts, done, job.ranks)


def _has_checkpoint(job: Job, done: int) -> bool:
    return job.ranks.any(job.ranks.is_main and checkpoint.path_of(job.checkpoints, done).exists())


def _last_good(job: Job) -> str:
    found = checkpoint.all_of(job.checkpoints)
    best = [kept.path_of(job.out, step) for step in kept.steps(job.out)[-1:]] if job.stopping is not None else []
    last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was written before it"
    return f"{last}; the best weights so far are {best[0]}" if best else last
