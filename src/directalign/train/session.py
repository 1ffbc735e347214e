"""A run with its models at hand: find the place to start, train, leave weights and summary. `assemble` loads what it needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from .. import config
from ..config_loading import dump_run
from ..interfaces import Family, Method
from . import checkpoint, loop, samples, summary
from .calls import CallCounter
from .distributed import Ranks
from .ema import Average
from .ending import NOTHING, Place, Stopping, place_of
from .feed import Feed
from .leaving import leave_weights
from .log import RunLog, read
from .loop import Job, Measures
from .optim import adamw, trained_parameters
from .progress import Display
from .sealed import write_text
from .snapshot import Parts
from .step import Updater
from .stopping import rules_of
from .trackers_opening import open_trackers

Say = Callable[[str], None]
CONSOLE = Console()


@dataclass(frozen=True)
class Loaded:
    """The models of a run and its data: what is trained, how, how it is measured, and on what."""

    family: Family
    method: Method
    measurer: Measures
    feed: Feed


def train_loaded(run: config.Run, out: Path, resume: bool, ranks: Ranks, loaded: Loaded) -> None:
    """Train in the claimed folder `out`, from its newest checkpoint with `resume`; everything but the page is there afterwards.

    Raises: see `assemble.run`.
    """
    family, feed, say = loaded.family, loaded.feed, speaker(ranks)
    parameters = trained_parameters(family.denoiser)
    ranks.broadcast(parameters.values())
    loaded.measurer.prepare()
    average = Average(parameters, run.train.ema_decay) if run.train.ema_decay is not None else None
    parts = Parts(run, family.denoiser, parameters, adamw(parameters, run.train, run.seed), average, loaded.method, feed.fingerprint)

    done = _place_to_start(out, parts, ranks, say) if resume else 0
    updater = Updater(parts.method, list(parameters.values()), parts.optimizer, run.train.clip_norm, ranks, CallCounter(family.denoiser))
    shown = run.train.sample_prompts or feed.shown(samples.NUM_SAMPLES)
    rules = rules_of(run)
    place = place_of(rules, run, out, done, say) if ranks.is_main and resume else Place()
    log = _open_log(run, out, done, shown, place.forgotten, say) if ranks.is_main else None
    stopping = Stopping(rules, out, ranks, parts, log, place.lost) if rules is not None else None
    with Display(run.train.num_steps, done, CONSOLE, silent=not ranks.is_main) as display:
        job = Job(run, out, ranks, parts, updater, feed, family, shown, loaded.measurer, log, display, stopping)
        try:
            done = loop.train(job, done)
            leave_weights(job, done)
            _summarise(job)
        finally:
            if log is not None:
                log.close()


def _place_to_start(out: Path, parts: Parts, ranks: Ranks, say: Say) -> int:
    """Restore the newest whole checkpoint into `parts`; the updates behind it, 0 when there is none."""
    path = checkpoint.find(out / "checkpoints", say, ranks)
    if path is None:
        say(f"no checkpoint in {out} yet: starting from the beginning")
        return 0
    done = checkpoint.restore(path, parts, ranks)
    say(f"continuing from {path}")
    return done


def _open_log(run: config.Run, out: Path, done: int, shown: Sequence[str], forgotten: Sequence[str], say: Say) -> RunLog:
    """Write run.yaml and open the records, without what a former process left beyond `done` updates (all of it when that is 0) and `forgotten` events."""
    write_text(out / "run.yaml", dump_run(run))
    samples.describe(out, shown)
    log = RunLog(out, done if done else NOTHING, forgotten, open_trackers(run, out, shown, say))
    for file in sorted((out / "samples").glob("step-*.png")):
        step = int(file.stem.removeprefix("step-"))
        if done and step <= done:
            log.grid(step, samples.load(file), again=True)
        else:
            file.unlink()
    return log


def _summarise(job: Job) -> None:
    if not job.ranks.is_main:
        return
    count = sum(p.numel() for p in job.parts.parameters.values())
    found = summary.summarise(job.run, read(job.out), job.ranks.size, count)
    write_text(job.out / "summary.json", json.dumps(found, indent=2) + "\n")
    if job.log is not None:
        job.log.summarise(found)


def speaker(ranks: Ranks) -> Say:
    """Prints lines for people, on rank 0 alone."""

    def say(text: str) -> None:
        if ranks.is_main:
            CONSOLE.print(text, highlight=False, markup=False, soft_wrap=True)

    return say
