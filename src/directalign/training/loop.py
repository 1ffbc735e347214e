"""The training loop: load the batches, train, log, checkpoint, evaluate.

Steps are counted from 0 where random draws start from them (`Batch.step`) and by the number of finished steps in records.
The checkpoint of a step is written before its sample grid and evaluation: a run that is killed there repeats both.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from .. import config
from ..interfaces import Model
from ..rewards.distributed import SynchronizedError, synchronized_call
from ..types import Batch, DirectAlignError, NonFiniteError
from . import checkpoint, early_stopping, run_log
from .checkpoint import TrainState
from .data import TrainData
from .distributed import TorchProcessGroup
from .early_stopping import EarlyStopping
from .optim import learning_rate, set_learning_rate
from .run_log import Display, RunLog
from .step import TrainStep

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DirectAlignError):
    """A signal stopped the run after a whole step; `--resume` continues it."""


@runtime_checkable
class Measures(Protocol):
    """What the loop needs of `evaluation.in_training.Measurer`."""

    def prepare(self) -> None:
        """Called once, while the weights are those of the base model."""
        ...

    def measure(self, num_samples: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TrainContext:
    """Everything that the loop uses. `shown` are the prompts of the sample grids; `log` is None on ranks other than 0."""

    run: config.RunConfig
    out: Path
    ranks: TorchProcessGroup
    state: TrainState
    step: TrainStep
    data: TrainData
    model: Model
    shown: Sequence[str]
    measurer: Measures
    log: RunLog | None
    display: Display
    stopping: EarlyStopping | None = None

    @property
    def is_over(self) -> bool:
        """Whether a stop rule has ended the run."""
        return self.stopping is not None and self.stopping.over

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"


def train(context: TrainContext, done: int) -> int:
    """Train from `done` finished steps to `train.num_steps` or until a stop rule ends the run; returns the finished steps.

    The last step has a checkpoint.

    Raises:
        Interrupted: SIGINT or SIGTERM; the state is in a checkpoint.
        NonFiniteError: from `TrainStep`, with the newest checkpoint in the message.
        DirectAlignError: any other failure of a step or an evaluation. The finished steps are in a checkpoint, unless one
            of several ranks fails on its own.
    """
    num_steps = context.run.train.num_steps
    with StopRequest() as stop:
        evaluate_if_due(context, done)
        apply_stop_rules(context, done)
        while done < num_steps and not context.is_over:
            start = time.perf_counter()
            with checkpoint_on_error(context, done):
                batches = context.data.batches(done)
                record = train_step(context, done, batches)
            done += 1
            log_step(context, {**record, "seconds": time.perf_counter() - start})
            stopped = context.ranks.any(stop.received is not None)
            if stopped or _is_due(done, context.run.train.save_every, num_steps):
                save_checkpoint(context, done)
            if stopped:
                raise Interrupted(
                    f"stopped by {stop.received or 'another rank'} after step {done} of {num_steps}; "
                    f"continue with --resume --out {context.out}"
                )
            with checkpoint_on_error(context, done):
                if evaluate_if_due(context, done):
                    apply_stop_rules(context, done)
    if context.is_over and not _has_checkpoint(context, done):
        save_checkpoint(context, done)
    return done


def train_step(context: TrainContext, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
    """Train on `batches` as step `step` (from 0) and update the average; returns the record."""
    rate = learning_rate(context.run.train, step)
    set_learning_rate(context.state.optimizer, rate)
    checkpoint.seed_step(context.run.seed, step)
    try:
        measured = context.step(step + 1, batches)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_last_good(context)}") from error
    if context.state.average is not None:
        context.state.average.update()
    return {"event": "step", "step": step + 1, **measured, "learning_rate": rate}


def log_step(context: TrainContext, record: dict[str, Any]) -> None:
    """Append the record to metrics.jsonl and the trackers, and update the live line."""
    if context.log is not None:
        context.log.write(record)
    context.display.step(record)


def save_checkpoint(context: TrainContext, done: int) -> None:
    """Write the state after `done` steps; the records up to there are on the disk first."""
    if context.log is not None:
        context.log.sync()
    checkpoint.save(context.checkpoints, context.state, done, context.ranks)


def evaluate_if_due(context: TrainContext, done: int) -> bool:
    """Run sampling and evaluation if due; training state is unaffected. Returns whether evaluation was due.

    All ranks generate images. Rank 0 has the records and decides what is still missing.
    """
    settings, num_steps, log = context.run, context.run.train.num_steps, context.log
    grid_due = _is_due(done, settings.train.sample_every, num_steps)
    evaluation_due = _is_due(done, settings.evaluate.every, num_steps)
    if not (grid_due or evaluation_due):
        return False
    no_grid = log is not None and not run_log.grid_path(context.out, done).exists()
    draws = context.ranks.any(grid_due and no_grid)
    evaluates = context.ranks.any(
        evaluation_due and log is not None and not log.has("evaluate", done)
    )
    with final_weights(context):
        if draws:
            grid = run_log.sample_grid(context.model, settings, context.shown, context.ranks)
            if log is not None:
                run_log.save_grid(grid, run_log.grid_path(context.out, done))
                log.grid(done, grid)
        if evaluates:
            _evaluate(context, done)
    return evaluation_due


def _evaluate(context: TrainContext, done: int) -> None:
    """Evaluate all pairs before and after training, some of them during the run."""
    settings = context.run.evaluate
    on_all_pairs = done in (0, context.run.train.num_steps)
    num_samples = (
        settings.num_samples
        if on_all_pairs
        else min(settings.num_samples_during, settings.num_samples)
    )
    measured = synchronized_call(lambda: context.measurer.measure(num_samples), context.ranks)
    if context.log is not None:
        record = {"event": "evaluate", "step": done, **measured}
        context.log.write(record)
        verdict = context.stopping.verdict() if context.stopping is not None else None
        context.display.measured(record, verdict.last.used if verdict is not None else None)


def apply_stop_rules(context: TrainContext, done: int) -> None:
    """Let the stop rules decide on the records of `done` steps; save the weights if they are the best so far."""
    if context.stopping is not None:
        with final_weights(context):
            context.stopping.apply(done)


def final_weights(context: TrainContext) -> Any:
    """A context with the weights that are sampled, evaluated and exported: the average where there is one."""
    average = context.state.average
    return nullcontext() if average is None else average.ema_weights()


@contextmanager
def checkpoint_on_error(context: TrainContext, done: int) -> Iterator[None]:
    """Save the state after `done` steps if the block fails. A failed step changes nothing but the method's state."""
    memory = dict(context.state.method.state_dict())
    try:
        yield
    except (NonFiniteError, Interrupted):
        raise
    except DirectAlignError as error:
        if done == 0 or not (context.ranks.size == 1 or isinstance(error, SynchronizedError)):
            raise
        context.state.method.load_state_dict(memory)
        if not _has_checkpoint(context, done):
            save_checkpoint(context, done)
        raise DirectAlignError(
            f"{error}; step {done} of {context.run.train.num_steps} is saved: "
            f"continue with --resume --out {context.out}"
        ) from error


class StopRequest:
    """Context: the first SIGINT or SIGTERM only sets `received`; the second one, and later ones, act as before."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._former = {}


def _is_due(done: int, every: int, num_steps: int) -> bool:
    """First, last, and every `every` steps in between (0: never in between)."""
    return done in (0, num_steps) or (every > 0 and done % every == 0)


def _has_checkpoint(context: TrainContext, done: int) -> bool:
    path = checkpoint.path_of(context.checkpoints, done)
    return context.ranks.any(context.ranks.is_main and path.exists())


def _last_good(context: TrainContext) -> str:
    found = checkpoint.all_of(context.checkpoints)
    last = (
        f"the last good checkpoint is {found[-1]}"
        if found
        else "no checkpoint was written before it"
    )
    best = early_stopping.best_steps(context.out) if context.stopping is not None else []
    path = early_stopping.best_path(context.out, best[-1]) if best else None
    return last if path is None else f"{last}; the best weights so far are {path}"
