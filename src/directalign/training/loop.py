"""The training loop: load, step, log, save, evaluate.

Steps count from 0 where random draws depend on them (`Batch.step`); records and checkpoints count
finished steps. The checkpoint of a step is written before its sample grid and evaluation: a run
that is killed there repeats both.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .. import config
from ..evaluation.generate import generate, save_png
from ..evaluation.in_training import references_of
from ..interfaces import Model
from ..rewards.black_box import SynchronizedError, synchronized_call
from ..types import SAVED, Batch, DirectAlignError, NonFiniteError
from . import checkpoint, early_stopping, run_log
from .checkpoint import TrainState
from .data import TrainData
from .distributed import TorchProcessGroup
from .early_stopping import EarlyStopping
from .optim import learning_rate
from .run_log import Display, RunLog
from .step import TrainStep, resources_used, start_measuring

STOPPED = {"reason": "callback", "says": "a callback ended the run"}
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""SIGHUP is of POSIX only, SIGBREAK (Ctrl-Break) of Windows only."""


Callback = Callable[[Mapping[str, Any]], Any]
"""Called after each step with its record, that of metrics.jsonl; the run ends if one returns True.
"""


class Interrupted(DirectAlignError):
    """A signal stopped the run after a complete step on all ranks; `--resume` continues it."""

    on_all_ranks = True


@dataclass(frozen=True)
class TrainContext:
    """What the loop uses.

    `evaluator`: an `evaluation.in_training.Measurer`, None for a run that measures nothing. `log`
    is None on ranks other than 0. `keeps_files`: False if `out` is removed after the run, so that
    no checkpoints and sample grids are made.
    """

    run: config.RunConfig
    out: Path
    group: TorchProcessGroup
    state: TrainState
    step: TrainStep
    data: TrainData
    model: Model
    sample_prompts: Sequence[str]
    evaluator: Any
    log: RunLog | None
    display: Display
    stopping: EarlyStopping | None = None
    callbacks: Sequence[Callback] = ()
    keeps_files: bool = True
    update_flops: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether a stop rule has ended the run."""
        return self.stopping is not None and self.stopping.is_over

    @property
    def how_to_continue(self) -> str:
        """What a user does about a run that was stopped."""
        if not self.keeps_files:
            return "the pipeline has the weights of that step; align it again to continue"
        return f"continue with --resume --out {shlex.quote(str(self.out))}"

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def has_checkpoint(self, done: int) -> bool:
        path = checkpoint.path_of(self.checkpoints, done)
        return self.group.any(self.group.is_main and path.exists())

    def asks_to_stop(self, record: Mapping[str, Any]) -> bool:
        """Call the callbacks, each once; whether one of them, on any rank, ends the run."""
        answers = [callback(record) for callback in self.callbacks]
        return bool(self.callbacks) and self.group.any(any(map(bool, answers)))

    def final_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights to evaluate and export: the EMA if there is one."""
        average = self.state.average
        return nullcontext() if average is None else average.ema_weights()


def train(context: TrainContext, done: int) -> int:
    """Train from `done` finished steps to `train.num_steps`, or until a stop rule or a callback
    ends the run.

    Returns the finished steps; the last one has a checkpoint.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP; the state is in a checkpoint.
        NonFiniteError: from `TrainStep`; the message names the newest checkpoint.
        DirectAlignError: a step or an evaluation failed; see `checkpoint_on_error`.
    """
    num_steps = context.run.train.num_steps
    with stop_signals() as received:
        with checkpoint_on_error(context, done):
            evaluate_if_due(context, done, num_steps)
            apply_stop_rules(context, done)
        while done < num_steps and not context.is_over:
            start = time.perf_counter()
            start_measuring(context.group.device)
            with checkpoint_on_error(context, done):
                batches = context.data.batches(done)
                record = train_step(context, done, batches)
            done += 1
            context.step.is_updating = False
            record["seconds"] = time.perf_counter() - start
            images = sum(len(batch.prompts) for batch in batches) * context.group.size
            record["resources"] = resources_used(context.group.device, images, record["seconds"])
            if context.update_flops is not None:
                record["resources"]["teraflops"] = context.update_flops / record["seconds"] / 1e12
            if context.log is not None:
                context.log.write(record)
            context.display.step(record)
            with checkpoint_on_error(context, done):
                if context.asks_to_stop(record) and done < num_steps:
                    num_steps = done
                    if context.log is not None:
                        context.log.write({"event": "stop", "step": done, **STOPPED})
            stopped = context.group.any(bool(received))
            if stopped or _is_due(done, context.run.train.save_every, num_steps):
                with stop_signals(ignored=True) if stopped else nullcontext():
                    save_checkpoint(context, done)
            if stopped:
                raise Interrupted(
                    f"stopped by {(*received, 'another rank')[0]} after step {done} of "
                    f"{num_steps}; {context.how_to_continue}"
                )
            with checkpoint_on_error(context, done):
                if evaluate_if_due(context, done, num_steps):
                    apply_stop_rules(context, done)
    if context.is_over and not context.has_checkpoint(done):
        save_checkpoint(context, done)
    return done


def train_step(context: TrainContext, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
    """Train on `batches` as step `step` (from 0) and update the EMA; returns the record."""
    rate = learning_rate(context.run.train, step)
    for group in context.state.optimizer.param_groups:
        group["lr"] = rate
    checkpoint.seed_step(context.run.seed, step)
    measured = context.step(step + 1, batches)
    if context.state.average is not None:
        context.state.average.update()
    return {"event": "step", "step": step + 1, **measured, "learning_rate": rate}


def save_checkpoint(context: TrainContext, done: int) -> None:
    """Write the state after `done` steps, after flushing the records up to there to disk."""
    if not context.keeps_files:
        return
    if context.log is not None:
        context.log.sync()
    checkpoint.save(context.checkpoints, context.state, done, context.group)


def evaluate_if_due(context: TrainContext, done: int, num_steps: int) -> bool:
    """Sample and evaluate if due; training state is unaffected. Returns whether evaluation was due.

    `num_steps`: the last step of the run. All ranks generate images. Rank 0 has the records and
    decides what is still missing.
    """
    run, log, measures = context.run, context.log, context.evaluator is not None
    grid_due = context.keeps_files and _is_due(done, run.train.sample_every, num_steps)
    evaluation_due = measures and _is_due(done, run.evaluate.every, num_steps)
    if not (grid_due or evaluation_due):
        return False
    grid_file = run_log.grid_path(context.out, done)
    no_grid = log is not None and not grid_file.exists()
    no_record = log is not None and not log.has("evaluate", done)
    makes_grid = context.group.any(grid_due and no_grid)
    evaluates = context.group.any(evaluation_due and no_record)
    with context.final_weights():
        if makes_grid:
            prompts, size = context.sample_prompts, run.evaluate.batch_size
            seeds = range(len(prompts))
            sources = context.data.first_sources(len(prompts))
            images = generate(
                context.model, prompts, seeds, run.rollout, size, context.group, sources
            )
            grid = run_log.tiled(images)
            if log is not None:
                save_png(grid[0], grid_file)
                log.grid(done, grid)
        if evaluates:
            _evaluate(context, done, is_whole=done in (0, num_steps))
        if done == 0 and evaluates:
            _measure_references(context)
    return evaluation_due


def _evaluate(context: TrainContext, done: int, is_whole: bool) -> None:
    """Evaluate all samples, or, during training, `num_samples_during` of them."""
    settings = context.run.evaluate
    num_samples = settings.num_samples
    if not is_whole:
        num_samples = min(settings.num_samples_during, num_samples)
    measured = measure(context, done, num_samples)
    if context.log is not None:
        record = {"event": "evaluate", "step": done, **measured}
        context.log.write(record)
        verdict = context.stopping.verdict() if context.stopping is not None else None
        context.display.evaluation(record, verdict.last.used if verdict is not None else {})


def _measure_references(context: TrainContext) -> None:
    """Record what the run is compared with beside its base model, whose weights it still has."""
    if not references_of(context.run):
        return
    checkpoint.seed_step(context.run.seed, 0)
    found = synchronized_call(context.evaluator.references, context.group)
    if context.log is not None:
        context.log.write({"event": "references", "step": 0, **found})


def measure(context: TrainContext, step: int, num_samples: int) -> dict[str, Any]:
    """Evaluate the present weights, those of `step`; fails on all ranks alike."""
    checkpoint.seed_step(context.run.seed, step)
    return synchronized_call(lambda: context.evaluator.measure(num_samples), context.group)


def apply_stop_rules(context: TrainContext, done: int) -> None:
    """Save the weights if they are the best so far, and let the stop rules decide."""
    if context.stopping is not None:
        with context.final_weights():
            context.stopping.apply(done)


@contextmanager
def checkpoint_on_error(context: TrainContext, done: int) -> Iterator[None]:
    """Save the state after `done` steps if the block fails on all ranks, and name the checkpoint.

    A failed step changes only the method's state, which is restored first. Nothing is saved if the
    optimizer may have stepped, so that a checkpoint never holds half of a step.
    """
    method_state = dict(context.state.method.state_dict())
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # also if a user's code turns it off
            yield
    except Interrupted:
        raise
    except NonFiniteError as error:
        if not context.keeps_files:
            raise
        saved = checkpoint.all_of(context.checkpoints)
        remedy = f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        best = early_stopping.best_steps(context.out) if context.stopping is not None else []
        if best:
            path = early_stopping.best_path(context.out, best[-1])
            remedy += f"; the best weights so far are {path}"
        raise NonFiniteError(f"{error}; {remedy}") from error
    except BaseException as error:
        failed_everywhere = context.group.size == 1 or isinstance(error, SynchronizedError)
        unsaved = done == 0 or not context.keeps_files
        if unsaved or not failed_everywhere or context.step.is_updating:
            raise
        with stop_signals(ignored=True):
            context.state.method.load_state_dict(method_state)
            if not context.has_checkpoint(done):
                save_checkpoint(context, done)
        saved = f"step {done} of {context.run.train.num_steps} is saved: {context.how_to_continue}"
        if isinstance(error, DirectAlignError):
            raise DirectAlignError(f"{error}; {saved}") from error
        setattr(error, SAVED, saved)  # of any class, and reported as such
        raise


@contextmanager
def stop_signals(ignored: bool = False) -> Iterator[list[str]]:
    """The names of the `STOP_SIGNALS` received inside; those after the first act as before.

    Later SIGHUPs are ignored, since a closed terminal may send several; with nohup all are.
    `ignored`: all signals are, for the last save before the run ends.
    """
    received: list[str] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    former = {each: signal.getsignal(each) for each in STOP_SIGNALS if in_main_thread}
    former = {e: f for e, f in former.items() if (e.name, f) != ("SIGHUP", signal.SIG_IGN)}

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for each in former:
            if each.name != "SIGHUP":
                signal.signal(each, former[each])

    try:
        for each in former:
            signal.signal(each, signal.SIG_IGN if ignored else receive)
        yield received
    finally:
        for each, before in former.items():
            signal.signal(each, before)


def _is_due(done: int, every: int, num_steps: int) -> bool:
    """First, last, and every `every` steps in between (0: never in between)."""
    return done in (0, num_steps) or (every > 0 and done % every == 0)
