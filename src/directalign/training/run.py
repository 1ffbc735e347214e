"""Train a recipe: check the output folder, load the models, train, export weights, write a report.

run.yaml  metrics.jsonl  tensorboard/  samples/  checkpoints/
lora.safetensors | transformer/ | unet/  summary.json  status.json  report.html
"""

import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import track
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import config
from ..config.load import changes_at_resume, dump_run, load_run
from ..evaluation.in_training import Measurer, generated_prompts, measured_metrics
from ..evaluation.scores import load_held_out
from ..interfaces import Method, Model, Reward
from ..io import atomic
from ..io.checkpoint_files import step_of
from ..methods import load_method
from ..methods.ceiling import measure_ceiling, unmeasured
from ..models import load_model, lora, place_denoiser
from ..models.checkpoint_source import Source, fingerprint
from ..models.text_encoder import PromptEncoder, default_folder
from ..rewards import load_reward
from ..toyworld.judges import load_judge
from ..toyworld.worlds import WORLDS
from ..types import DirectAlignError
from . import checkpoint, distributed, early_stopping, loop, run_folder, run_log
from .checkpoint import TrainState
from .data import TrainData, open_data
from .distributed import TorchProcessGroup, process_group
from .early_stopping import NOTHING, EarlyStopping, resume_state
from .live_page import LivePage
from .loop import Callback, TrainContext, checkpoint_on_error
from .optim import EMA, adamw, trained_parameters
from .run_log import CONSOLE, NUM_SAMPLES, Display, RunLog, configure_logging
from .step import NFECounter, TrainStep
from .trackers import open_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InMemory:
    """What a caller in Python has in memory; the recipe names the rest."""

    source: Source | None = None
    """A pipeline in the place of model.path; the run is on its device, and in one process."""
    reward: Reward | None = None
    """In the place of the recipe's."""
    callbacks: Sequence[Callback] = ()
    keeps_files: bool = True
    """False if the output folder is removed after the run."""
    measures: bool = True
    """False for a run without evaluations."""
    is_shown: bool = True
    """Whether progress and messages are printed."""
    update_flops: float | None = None
    """FLOPs of an update on one rank as the checks counted them, for the rate in the log."""


@dataclass(frozen=True)
class Loaded:
    """The models and data of a run. `evaluator` is None for a run that measures nothing."""

    model: Model
    method: Method
    evaluator: Any
    data: TrainData
    base: str | None = None
    """Fingerprint of the base model's files."""


def run(
    run: config.RunConfig,
    out: Path,
    resume: bool,
    overrides: Sequence[str] = (),
    given: InMemory = InMemory(),
) -> Path:
    """Train `run` and write everything to `out`, which is returned.

    Args:
        resume: continue from the newest whole checkpoint in `out`, or start if it has none yet. A
            run that torchrun restarts after a failure resumes by itself.
        overrides: of the recipe, already in `run`; recorded in run.yaml for a resume.
        given: what is in memory already, for the Python API.
    Raises:
        DirectAlignError: `out` cannot be used, a file is missing or broken, the disk is full, a
            checkpoint does not fit.
        NonFiniteError, Interrupted: see `loop.train`.
    """
    place = None if given.source is None else given.source.device
    with process_group(place) as group, numerics(run, group.device), ExitStack() as stack:
        stack.enter_context(
            atomic.disk_errors(
                out, f"free some and continue with --resume --out {shlex.quote(str(out))}"
            )
        )
        configure_logging(group.is_main, given.is_shown)
        restarted = group.restarts > 0 and group.is_main and (out / "run.yaml").exists()
        resume = resume or group.any(restarted)
        if group.is_main:
            run_folder.check(out, resume)
        group.barrier()
        checkpoint.seed_all(run.seed)
        continues = resume and bool(checkpoint.all_of(out / "checkpoints"))
        loaded, page = _load(run, group, given, continues), None
        if group.is_main:  # not earlier: a recipe that cannot be loaded creates no folder
            atomic.make_folder(out)
            stack.enter_context(atomic.exclusive(out, "training in it"))
            run_folder.check(out, resume)  # another process may have trained in it meanwhile
            run_folder.copy_control_tokens(run, out)
            if given.keeps_files:
                page = stack.enter_context(LivePage(out, group.size))
        group.barrier()
        train_loaded(run, out, resume, group, loaded, overrides, given, page)
    return out


def train_once(settings: config.RunConfig, out: Path, overrides: Sequence[str] = ()) -> None:
    """`run`, unless a finished run of these settings is in `out`; an interrupted one is resumed.

    Raises: DirectAlignError if a finished run of other settings is there.
    """
    if not (out / "summary.json").exists():
        run(settings, out, (out / "run.yaml").exists(), overrides)
    elif dump_run(load_run(out / "run.yaml")) != dump_run(settings):
        raise DirectAlignError(
            f"{out} holds a finished run of other settings than the recipe has now: "
            f"remove {out}, or choose another --out"
        )


@contextmanager
def numerics(run: config.RunConfig, device: torch.device) -> Iterator[None]:
    """Set TF32 (CUDA only) and deterministic kernels as the recipe says, inside."""
    matmul, convolution = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    before = matmul.allow_tf32, convolution.allow_tf32, torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        tf32 = run.train.tf32
        tf32 = run.model.dtype == "bfloat16" if tf32 is None else tf32
        matmul.allow_tf32 = convolution.allow_tf32 = tf32
    attention = nullcontext()
    if run.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
        torch.use_deterministic_algorithms(True)
        attention = sdpa_kernel(SDPBackend.MATH)
    try:
        with attention:
            yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before[:2]
        torch.use_deterministic_algorithms(before[2])


def _load(
    run: config.RunConfig, group: TorchProcessGroup, given: InMemory, continues: bool
) -> Loaded:
    """Load in an order that saves memory: text encoders that are freed come first.

    A run that `continues` needs no `model.lora.init`: its checkpoint holds the adapters.
    """
    distributed.check_cached_ranks(run, group)
    sharded, frees = distributed.is_sharded_run(run, group), run.model.text_encoders == "free"
    first_device = torch.device("cpu") if sharded or frees else None
    model = load_model(run.model, group.device, run.seed, first_device, given.source)
    if run.model.tune == "lora" and run.model.lora.init is not None and not continues:
        lora.start_from(model.denoiser, run.model, model.part, model.pipeline)
    data = open_data(run, model, group)
    for reason in data.skipped:
        logger.info(f"skipped image {reason}")
    if frees:
        precompute_embeddings(run, model, data, group)
    if sharded:
        distributed.shard(model.denoiser, run, group)
    elif frees:
        place_denoiser(model.denoiser, run.model, group.device)
    reward = given.reward or load_reward(run.reward, group.device)
    evaluator = None
    if given.measures:
        name = run.evaluate.judge
        judge = load_judge(WORLDS[name]) if name != "none" else None
        held_out = load_held_out(run.evaluate, group.device) if group.is_main else {}
        evaluator = Measurer(run, model, reward, judge, group, held_out)
    method, base = load_method(run, model, reward, group), fingerprint(run.model)
    return Loaded(model, method, evaluator, data, base)


def precompute_embeddings(
    run: config.RunConfig, model: Any, data: TrainData, group: TorchProcessGroup
) -> None:
    """Encode all prompts of the run into the cache on disk and free the model's text encoders.

    They are the empty one and those of sample grids, evaluations, and training on all ranks. Each
    rank encodes its share, then what other ranks stored on a disk that it cannot read.
    """
    samples = run.train.sample_prompts or data.first_texts(NUM_SAMPLES)
    trained = dict.fromkeys(_trained_texts(run, data))
    asked = (f"{phrase}. {text}" for phrase in run.method.asked_phrases() for text in trained)
    prompts = list(dict.fromkeys(["", *samples, *generated_prompts(run), *trained, *asked]))
    encoder, folder = cast(PromptEncoder, model.prompts), default_folder()
    show = partial(track, description="encoding prompts") if group.is_main else iter
    for share in (prompts[group.rank :: group.size], *([prompts] if group.size > 1 else [])):
        for fault in encoder.store(share, folder, show):
            logger.info(f"{fault}; encoded again")
        group.barrier()
    encoder.free()
    logger.info(f"{len(prompts)} prompts are encoded in {folder}; the text encoders are freed")


def _trained_texts(run: config.RunConfig, data: TrainData) -> Iterator[str]:
    """The prompts of all steps, with repetitions."""
    return (text for step in range(run.train.num_steps) for text in data.texts(step))


def train_loaded(
    run: config.RunConfig,
    out: Path,
    resume: bool,
    group: TorchProcessGroup,
    loaded: Loaded,
    overrides: Sequence[str] = (),
    given: InMemory = InMemory(),
    page: LivePage | None = None,
) -> None:
    """Train in the folder `out` and write everything; the report if there is a `page` of it.

    Raises: see `run`.
    """
    is_shown = group.is_main and given.is_shown
    configure_logging(group.is_main, given.is_shown)
    model, data, settings = loaded.model, loaded.data, run.train
    parameters = trained_parameters(model.denoiser)
    group.broadcast(parameters.values())
    if loaded.evaluator is not None:
        loaded.evaluator.prepare()
    average = EMA(parameters, settings.ema_decay) if settings.ema_decay is not None else None
    optimizer = adamw(parameters, settings, run.seed)
    state = TrainState(
        *(run, model.denoiser, parameters, optimizer, average, loaded.method),
        *(data.fingerprint, loaded.base),
    )
    done = _restore_newest(out, state, group) if resume else 0
    if not done and unmeasured(loaded.method):
        prompts = [*islice(cycle(_trained_texts(run, data)), run.method.ceiling.images)]
        measure_ceiling(loaded.method, model, run, prompts, group)
    nfe = NFECounter(model.denoiser)
    step = TrainStep(
        loaded.method, list(parameters.values()), optimizer, settings.max_grad_norm, group, nfe
    )
    prompts = settings.sample_prompts or data.first_texts(NUM_SAMPLES)
    rules = early_stopping.rules_of(run)
    lost, dropped = frozenset[int](), early_stopping.END_EVENTS
    if group.is_main:
        if done:
            _drop_partial_evaluation(run, out)
        lost, dropped = resume_state(rules, run, out, done)
        atomic.write_text(out / "run.yaml", dump_run(run, overrides))
        if page is not None:
            page.start()
    log = _open_log(run, out, done, prompts, dropped, page) if group.is_main else None
    stopping = EarlyStopping(rules, out, group, state, log, lost) if rules else None
    every = run.evaluate.every
    with Display(settings.num_steps, done, CONSOLE, not is_shown, every) as display:
        context = TrainContext(
            *(run, out, group, state, step, data, model, prompts),
            *(loaded.evaluator, log, display, stopping),
            *(given.callbacks, given.keeps_files, given.update_flops),
        )
        try:
            done = loop.train(context, done)
            export_weights(context, done)
            if log is not None:
                history, count = run_log.read(out), sum(p.numel() for p in parameters.values())
                kept = early_stopping.kept_summary(run, history)
                summary = run_folder.summarize(run, history, group.size, count, kept)
                summary |= {"base": loaded.base} if loaded.base else {}
                atomic.write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
                log.summary(summary)
        finally:
            nfe.close()
            if log is not None:
                log.close()


def _restore_newest(out: Path, state: TrainState, group: TorchProcessGroup) -> int:
    """Restore the newest whole checkpoint into `state`; returns its finished steps, 0 if none."""
    folder, recipe = out / "checkpoints", out / "run.yaml"
    if changes := changes_at_resume(recipe, load_run(recipe), state.run):
        logger.info(f"{recipe}: {', '.join(changes)}")
    if group.is_main:
        for each in (out, out / "samples", folder):  # of a killed process
            atomic.sweep(each)
    path = checkpoint.find(folder, group)
    if path is None:
        if (out / "summary.json").exists():
            raise DirectAlignError(
                f"--resume: {out} holds a finished run without checkpoints, which would be trained "
                "again from its start; name another --out"
            )
        logger.info(f"no checkpoint in {out} yet: starting from the beginning")
        return 0
    done = checkpoint.restore(path, state, group)
    if group.is_main:
        run_log.require_updates(out, done)
        checkpoint.drop_oldest(folder, state.run.kept_checkpoints, path)
    logger.info(f"continuing from {path}")
    return done


def _drop_partial_evaluation(run: config.RunConfig, out: Path) -> None:
    """Drop the evaluation of what is now the last step if it was one during the run.

    The last one is of all samples, as that of the base model is. `out` has the former run.yaml.
    """
    settings, last = run.evaluate, run.train.num_steps
    fewer = settings.num_samples_during < settings.num_samples
    if fewer and load_run(out / "run.yaml").train.num_steps != last:
        run_log.drop(out, "evaluate", last)


def _open_log(
    run: config.RunConfig,
    out: Path,
    done: int,
    prompts: Sequence[str],
    dropped: Sequence[str],
    page: LivePage | None,
) -> RunLog:
    """Open the log, without records and grids beyond `done` finished steps."""
    run_log.describe_grids(out, prompts)
    if run.evaluate.metrics:
        names = {name: each.as_record() for name, each in measured_metrics(run).items()}
        text = json.dumps(names, ensure_ascii=False, indent=1)
        atomic.write_text(out / "metric_names.json", text)
    trackers = [*open_trackers(run, out, prompts), *([page] if page is not None else [])]
    log = RunLog(out, done if done else NOTHING, dropped, trackers)
    for file in sorted((out / "samples").glob("step-*.png")):
        step = step_of(file.with_suffix(""))
        grid = run_log.load_grid(file) if done and step <= done else None
        if grid is not None:
            log.grid(step, grid, is_replay=True)
        else:
            file.unlink()
    return log


def export_weights(context: TrainContext, done: int) -> None:
    """Export the final (or best) weights, evaluate the best ones, log the stop reason.

    Raises: DirectAlignError if the best weights are damaged or a reward fails; `--resume` repeats
    both.
    """
    stopping, log = context.stopping, context.log
    if stopping is None:
        if context.state.average is not None:
            context.state.average.load()
        _save_weights(context)
        return
    verdict = stopping.verdict()
    if log is not None and verdict is not None and stopping.is_over:
        log.write_once(early_stopping.stop_record(verdict, done))
    step = stopping.load_best()
    _save_weights(context)
    with checkpoint_on_error(context, done):
        _evaluate_exported(context, step)
    if log is not None and verdict is not None:
        num_steps = context.run.train.num_steps
        lines = early_stopping.summary_lines(stopping.rules, log.records, verdict, done, num_steps)
        for level, line in lines:
            logger.log(level, line)


def _save_weights(context: TrainContext) -> None:
    """Write the final weights, complete or not at all."""
    if not context.keeps_files:
        return
    partial = atomic.partial_of(context.out / "weights")
    if context.group.is_main:
        atomic.sweep(context.out)
        partial.mkdir()
    distributed.save(context.model, partial, context.group)
    if context.group.is_main:
        atomic.flush_tree(partial)
        for each in partial.iterdir():
            target = context.out / each.name
            if target.is_dir():
                shutil.rmtree(target)
            each.replace(target)
        partial.rmdir()
        atomic.flush(context.out)


def _evaluate_exported(context: TrainContext, step: int) -> None:
    """Record the evaluation of the exported weights on all samples, reused if there is one."""
    log, settings, measured = context.log, context.run.evaluate, None
    if log is not None:
        small = settings.num_samples <= settings.num_samples_during
        found = [r for r in log.records if r["step"] == step and r["event"] in ("evaluate", "kept")]
        whole = [r for r in found if r["event"] == "kept" or "during" in r or small]
        measured = whole[-1] if whole else None
    if context.group.any(log is not None and measured is None):
        measured = loop.measure(context, step, settings.num_samples)
    if log is not None and measured is not None:
        unused = ("event", "step", "during", "each")
        numbers = {name: value for name, value in measured.items() if name not in unused}
        log.write_once({"event": "kept", "step": step, **numbers})
