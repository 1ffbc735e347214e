"""Train a recipe: check the output folder, load the models, train, export the weights, write summary and page.

run.yaml  metrics.jsonl  tensorboard/  samples/  checkpoints/  lora.safetensors | transformer/ | unet/  summary.json  report.html
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from .. import config
from ..config.load import dump_run
from ..evaluation.in_training import Measurer
from ..evaluation.scores import load_held_out
from ..interfaces import Method, Model
from ..io import atomic
from ..methods import load_method
from ..models import load_model
from ..report import write_page
from ..rewards import load_reward
from ..rewards.distributed import synchronized_call
from ..toyworld.judges import load_judge
from ..types import DirectAlignError
from . import checkpoint, distributed, early_stopping, loop, run_folder, run_log
from .checkpoint import TrainState
from .data import TrainData, open_data
from .distributed import TorchProcessGroup, process_group
from .early_stopping import NOTHING, EarlyStopping, ResumeState, resume_state
from .loop import Measures, TrainContext, checkpoint_on_error, final_weights
from .optim import EMA, adamw, trained_parameters
from .precompute_embeddings import precompute_embeddings
from .run_log import CONSOLE, Display, RunLog, configure_logging
from .step import NFECounter, TrainStep
from .trackers import open_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """The models and data of a run."""

    model: Model
    method: Method
    measurer: Measures
    data: TrainData


def run(run: config.RunConfig, out: Path, resume: bool) -> Path:
    """Train as `run` says and write everything to `out`, which is returned.

    Args:
        resume: continue from the newest whole checkpoint in `out`, or start if it has none yet. A run that torchrun
            restarts after a failure resumes by itself.
    Raises:
        DirectAlignError: `out` may not be used, a file is missing or broken, the disk is full, a checkpoint does not fit.
        NonFiniteError, Interrupted: see `loop.train`.
    """
    with process_group() as ranks, _disk_errors(out), ExitStack() as stack:
        configure_logging(ranks.is_main)
        restarted = ranks.restarts > 0 and ranks.is_main and (out / "run.yaml").exists()
        resume = resume or ranks.any(restarted)
        if ranks.is_main:
            run_folder.check(out, resume)
        ranks.wait()
        checkpoint.seed_all(run.seed)
        loaded = _load(run, ranks)
        if ranks.is_main:
            run_folder.make(out)  # only now: a recipe that cannot be loaded leaves no folder behind
            stack.enter_context(run_folder.locked(out))
            run_folder.keep_tokens(run, out)
        ranks.wait()
        train_loaded(run, out, resume, ranks, loaded)
        if ranks.is_main:
            write_page(out)
    return out


def _load(run: config.RunConfig, ranks: TorchProcessGroup) -> Loaded:
    """Load the large parts one after the other: text encoders that are freed come before the denoiser and the reward."""
    sharded, frees = distributed.is_sharded_run(run, ranks), run.model.text_encoders == "free"
    first_device = torch.device("cpu") if sharded or frees else None
    model = load_model(run.model, ranks.device, run.seed, denoiser_device=first_device)
    data = open_data(run, model, ranks)
    for reason in data.skipped:
        logger.info(f"skipped image {reason}")
    if frees:
        precompute_embeddings(run, model, data, ranks)
    if sharded:
        distributed.shard(model.denoiser, run.model, ranks)
    else:
        model.denoiser.to(ranks.device)
    reward = load_reward(run.reward, ranks.device)
    judge = load_judge() if run.evaluate.judge == "world" else None
    held_out = load_held_out(run.evaluate, ranks.device) if ranks.is_main else {}
    measurer = Measurer(run, model, reward, judge, ranks=ranks, held_out=held_out)
    return Loaded(model, load_method(run, model, reward, ranks), measurer, data)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk raises one DirectAlignError, whichever library notices it."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not atomic.is_disk_full(error):
            raise
        raise DirectAlignError(
            f"no space left on the disk that holds {out}; free some and continue with --resume --out {out}"
        ) from error


def train_loaded(
    run: config.RunConfig, out: Path, resume: bool, ranks: TorchProcessGroup, loaded: Loaded
) -> None:
    """Train in the folder `out`, from its newest checkpoint with `resume`; writes everything but the page. Raises: see `run`."""
    configure_logging(ranks.is_main)
    model, data = loaded.model, loaded.data
    parameters = trained_parameters(model.denoiser)
    ranks.broadcast(parameters.values())
    loaded.measurer.prepare()
    average = EMA(parameters, run.train.ema_decay) if run.train.ema_decay is not None else None
    optimizer = adamw(parameters, run.train, run.seed)
    state = TrainState(
        run, model.denoiser, parameters, optimizer, average, loaded.method, data.fingerprint
    )
    done = _restore_newest(out, state, ranks) if resume else 0
    counter, weights = NFECounter(model.denoiser), list(parameters.values())
    step = TrainStep(state.method, weights, optimizer, run.train.max_grad_norm, ranks, counter)
    shown = run.train.sample_prompts or data.shown(run_log.NUM_SAMPLES)
    rules = early_stopping.rules_of(run)
    former = resume_state(rules, run, out, done) if ranks.is_main and resume else ResumeState()
    log = _open_log(run, out, done, shown, former.forgotten) if ranks.is_main else None
    stopping = (
        EarlyStopping(rules, out, ranks, state, log, former.lost) if rules is not None else None
    )
    with Display(run.train.num_steps, done, CONSOLE, silent=not ranks.is_main) as display:
        context = TrainContext(
            run,
            out,
            ranks,
            state,
            step,
            data,
            model,
            shown,
            loaded.measurer,
            log,
            display,
            stopping,
        )
        try:
            done = loop.train(context, done)
            export_weights(context, done)
            if log is not None:
                _write_summary(context, log)
        finally:
            if log is not None:
                log.close()


def _restore_newest(out: Path, state: TrainState, ranks: TorchProcessGroup) -> int:
    """Restore the newest whole checkpoint into `state`; returns its finished steps, 0 when there is none."""
    path = checkpoint.find(out / "checkpoints", ranks)
    if path is None:
        logger.info(f"no checkpoint in {out} yet: starting from the beginning")
        return 0
    done = checkpoint.restore(path, state, ranks)
    logger.info(f"continuing from {path}")
    return done


def _open_log(
    run: config.RunConfig, out: Path, done: int, shown: Sequence[str], forgotten: Sequence[str]
) -> RunLog:
    """Write run.yaml and open the records without those of a former process beyond `done` steps and `forgotten` events."""
    atomic.write_text(out / "run.yaml", dump_run(run))
    run_log.describe_grids(out, shown)
    log = RunLog(out, done if done else NOTHING, forgotten, open_trackers(run, out, shown))
    for file in sorted((out / "samples").glob("step-*.png")):
        step = checkpoint.step_of(file.with_suffix(""))
        if done and step <= done:
            log.grid(step, run_log.load_grid(file), again=True)
        else:
            file.unlink()
    return log


def export_weights(context: TrainContext, done: int) -> None:
    """Export the final (or best) weights, evaluate them, log the stop reason.

    Raises: DirectAlignError for best weights that are damaged, or a reward that does not answer; `--resume` repeats both.
    """
    stopping, log = context.stopping, context.log
    if stopping is None:
        with final_weights(context):
            distributed.save(context.model, context.out, context.ranks)
        return
    if log is not None and stopping.over:
        log.write_once(early_stopping.stop_record(stopping.verdict_on_rank_0(), done))
    step = stopping.load_best()
    distributed.save(context.model, context.out, context.ranks)
    with checkpoint_on_error(context, done):
        _evaluate_exported(context, step)
    if log is not None:
        verdict = stopping.verdict_on_rank_0()
        for level, line in early_stopping.summary_lines(
            stopping.rules, log.records, verdict, done, context.run.train.num_steps
        ):
            logger.log(level, line)


def _evaluate_exported(context: TrainContext, step: int) -> None:
    """Record the evaluation of the exported weights on all pairs; the base model and the last step often have one already."""
    log, settings, numbers = context.log, context.run.evaluate, None
    if log is not None:
        small = settings.num_samples <= settings.num_samples_during
        found = [r for r in log.records if r["step"] == step and r["event"] in ("evaluate", "kept")]
        whole = [r for r in found if r["event"] == "kept" or "during" in r or small]
        numbers = whole[-1] if whole else None
    if context.ranks.any(log is not None and numbers is None):
        numbers = synchronized_call(
            lambda: context.measurer.measure(settings.num_samples), context.ranks
        )
    if log is not None and numbers is not None:
        left_out = ("event", "step", "during", "each")
        numbers = {name: value for name, value in numbers.items() if name not in left_out}
        log.write_once({"event": "kept", "step": step, **numbers})


def _write_summary(context: TrainContext, log: RunLog) -> None:
    count = sum(p.numel() for p in context.state.parameters.values())
    history = run_log.read(context.out)
    kept = early_stopping.kept_summary(context.run, history)
    found = run_folder.summarise(context.run, history, context.ranks.size, count, kept)
    atomic.write_text(context.out / "summary.json", json.dumps(found, indent=2) + "\n")
    log.summarise(found)
