"""Checkpoints: everything that a training step reads or changes, written atomically and verified.

record.json    step, resolved config, architecture, schedule, data position, ranks, versions
*.safetensors  weights.NAME, ema.NAME, method.NAME (its own copy of the weights, if it has one),
               and the optimizer's tensors: exp_avg.NAME, ...
optimizer.pt   the optimizer's counts and rates
rank-R.pt      the method's state of rank R

The newest `RunConfig.kept_checkpoints` remain. A damaged checkpoint is reported and the one
before it used. One of another config, architecture, data set or global batch is refused. The
number of processes may differ between writing and reading.
"""

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from .. import config
from ..config.load import changes_at_resume
from ..diffusion.rng import generator_for
from ..interfaces import Method
from ..io import atomic
from ..io.checkpoint_files import (
    AVERAGE,
    FORMAT,
    METHOD,
    WEIGHTS,
    all_of,
    first_failure,
    list_tensors,
    path_of,
    read_record,
    read_tensors,
)
from ..types import DirectAlignError
from .data import global_batch_size
from .distributed import TorchProcessGroup, class_of, empty_like_sharded
from .optim import EMA, learning_rate
from .run_folder import versions

logger = logging.getLogger(__name__)

OWN_SAMPLES = "rollouts"
"""Key of a method's state under which it keeps samples of its own rank."""
GLOBAL_STREAM = 1_000_003
"""Separates these seeds from those of the noise and the noise levels."""


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds, by reference. `data` is the fingerprint of prompts and images."""

    run: config.RunConfig
    denoiser: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: EMA | None
    method: Method
    data: str
    base: str | None = None
    """Fingerprint of the base model's files."""

    @property
    def of_method(self) -> dict[str, Mapping[str, Tensor]]:
        """The method's own copy of the weights, if it keeps one: `ObjectiveMethod.own_weights`."""
        own = getattr(self.method, "own_weights", dict[str, Tensor])()
        return {METHOD: own} if own else {}


def write_tensors(
    folder: Path, groups: Mapping[str, Mapping[str, Tensor]], group: TorchProcessGroup
) -> None:
    """Write tensors as GROUP.NAME: one file per group by rank 0, or each rank its shards."""
    named = {
        key: {f"{key}.{name}": tensor.detach() for name, tensor in tensors.items()}
        for key, tensors in groups.items()
    }
    merged = {name: tensor for tensors in named.values() for name, tensor in tensors.items()}
    if any(isinstance(tensor, DTensor) for tensor in merged.values()):
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(merged, storage_writer=writer)
    elif group.is_main:
        for key, tensors in named.items():
            plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, folder / f"{key}.safetensors")


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and CUDA)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """`seed_all` for what follows `step` finished steps, equally on all ranks.

    Called before each step and each evaluation, so that a checkpoint needs no random states.
    """
    seed_all(generator_for(seed, GLOBAL_STREAM, step, 0).initial_seed())


def architecture(denoiser: nn.Module) -> str:
    """Fingerprint of class, parameter names, shapes and requires_grad, sharded or not."""
    named = denoiser.named_parameters()
    lines = [f"{name} {tuple(p.shape)} {p.requires_grad}" for name, p in named]
    lines = [class_of(denoiser).__name__, *lines]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_state(folder: Path, state: TrainState, step: int, group: TorchProcessGroup) -> None:
    """Write this rank's share of the state after `step` steps; rank 0 writes what is common."""
    torch.save({"method": dict(state.method.state_dict())}, folder / f"rank-{group.rank}.pt")
    moments, rest = _optimizer_state(state)
    average = {AVERAGE: state.average.tensors()} if state.average is not None else {}
    write_tensors(
        folder, {WEIGHTS: state.parameters, **average, **state.of_method, **moments}, group
    )
    if not group.is_main:
        return
    torch.save(rest, folder / "optimizer.pt")
    run, settings = state.run, state.run.train
    rate = learning_rate(settings, min(step, settings.num_steps - 1))
    batch_size = global_batch_size(run, group)
    record = {
        "format": FORMAT,
        "step": step,
        "config": run.model_dump(mode="json"),
        "architecture": architecture(state.denoiser),
        "base": state.base,
        "schedule": {"kind": settings.schedule, "learning_rate": rate},
        "data": {"fingerprint": state.data, "ranks": group.size, "global_batch_size": batch_size},
        "versions": versions(),
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_state(folder: Path, state: TrainState, group: TorchProcessGroup) -> int:
    """Restore `state` in place on any number of ranks; returns the checkpoint's finished steps.

    With another batch layout than when writing, all ranks have the method's state of rank 0.
    """
    record, batch_size = read_record(folder), state.run.data.batch_size
    written = record["data"]["ranks"], record["config"]["data"]["batch_size"]
    is_same = written == (group.size, batch_size)
    own = _load(folder / (f"rank-{group.rank}.pt" if is_same else "rank-0.pt"))
    if not is_same and own["method"].get(OWN_SAMPLES):
        raise DirectAlignError(
            f"{folder} holds unfinished rollouts (rollout.reuse, method.updates_per_rollout) for "
            f"{written[0]} ranks with data.batch_size {written[1]}: continue with these, or from a "
            "checkpoint between two rollouts"
        )
    read_tensors(folder, {WEIGHTS: state.parameters, **state.of_method})
    if state.average is not None:
        read_tensors(folder, {AVERAGE: state.average.tensors()})
        state.average.model.optimization_step = record["step"]
    _restore_optimizer(folder, state)
    state.method.load_state_dict(own["method"])
    return int(record["step"])


def _optimizer_state(state: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by key and parameter name, sharded as the parameters; the state without them)."""
    packed = state.optimizer.state_dict()
    moments: dict[str, dict[str, Tensor]] = {}
    rest: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(state.parameters):
        for key, value in packed["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0:
                moments.setdefault(key, {})[name] = value
            else:
                rest.setdefault(index, {})[key] = value
    return moments, {**packed, "state": rest}


def _restore_optimizer(folder: Path, state: TrainState) -> None:
    packed = _load(folder / "optimizer.pt")
    index_of = {name: index for index, name in enumerate(state.parameters)}
    moments: dict[str, dict[str, Tensor]] = {}
    for full_name, stored in list_tensors(folder).items():
        key, _, name = full_name.partition(".")
        if key not in (WEIGHTS, AVERAGE, METHOD):
            weight, dtype = state.parameters[name], stored.properties.dtype
            moment = empty_like_sharded(weight, stored.size, dtype)
            moments.setdefault(key, {})[name] = moment
            packed["state"].setdefault(index_of[name], {})[key] = moment
    read_tensors(folder, moments)
    state.optimizer.load_state_dict(packed)


def _load(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:  # torch advises to run what it holds
        raise ValueError(f"{file.name} holds other things than numbers and texts") from error


def save(folder: Path, state: TrainState, step: int, group: TorchProcessGroup) -> Path:
    """Write the state after `step` steps and remove the oldest checkpoints.

    Raises: DirectAlignError if the disk is full or not writable; earlier checkpoints stay.
    """
    target, earlier = path_of(folder, step), all_of(folder)
    remedy = "there was none before it; free some space and start again"
    if earlier:
        remedy = f"{earlier[-1]} is kept; free some space and continue with --resume"
    write_atomic(target, lambda partial: write_state(partial, state, step, group), group, remedy)
    if group.is_main:
        drop_oldest(folder, state.run.kept_checkpoints, target)
    group.barrier()
    return target


def drop_oldest(folder: Path, count: int | None, used: Path) -> None:
    """Remove all but the newest `count` checkpoints, None keeps all; `used` stays."""
    for old in all_of(folder)[:-count] if count is not None else ():
        if old != used:
            shutil.rmtree(old)


def write_atomic(
    target: Path,
    fill: Callable[[Path], None],
    group: TorchProcessGroup,
    remedy: str,
    what: str = "checkpoint",
) -> None:
    """Write folder `target` with checksums; `fill` adds each rank's files. All or nothing.

    Raises: DirectAlignError if the disk is full or not writable; it ends in `remedy`.
    """
    partial = atomic.partial_of(target)
    try:
        if group.is_main:
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.sweep(target.parent)
            partial.mkdir()
        group.barrier()
        fill(partial)
        group.barrier()
        own = atomic.checksums(partial, group.rank, group.size)
        parts = [json.loads(text) for text in group.gather_texts(json.dumps(own))]
        if group.is_main:
            files = {name: entry for part in parts for name, entry in part.items()}
            atomic.publish(target, dict(sorted(files.items())))
        group.barrier()
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cause = first_failure(error) if isinstance(error, CheckpointException) else error
        reason = "no space left on the disk" if atomic.is_disk_full(cause) else str(cause)
        raise DirectAlignError(f"cannot write {what} {target}: {reason}; {remedy}") from error


def find(folder: Path, group: TorchProcessGroup) -> Path | None:
    """The newest whole checkpoint, None if there is none. Damaged ones are skipped with a warning.

    Raises: DirectAlignError if all are damaged.
    """
    damaged: list[str] = []
    names = group.gather_texts("\n".join(path.name for path in all_of(folder)))[0].split()
    for candidate in [folder / name for name in reversed(names)]:
        found = atomic.damage(candidate, group.rank, group.size)  # of this rank's share
        if found is None:
            try:
                read_record(candidate)
            except DirectAlignError as error:
                found = str(error).split(";")[0].removeprefix(f"{candidate}/")
        damage = group.first_text(found or "")
        if not damage:
            if damaged:
                logger.warning(f"damaged checkpoint: {'; '.join(damaged)}; using {candidate}")
            return candidate
        damaged.append(f"{candidate} ({damage})")
    if damaged:
        raise DirectAlignError(
            f"no checkpoint can be used: {'; '.join(damaged)}; start again in another --out"
        )
    return None


def restore(path: Path, state: TrainState, group: TorchProcessGroup) -> int:
    """Restore `state` from a checkpoint of the same run; returns its finished steps.

    Raises: DirectAlignError if config, architecture, data, global batch or format differ.
    """
    record, run = read_record(path), state.run
    if record.get("format") != FORMAT:
        raise DirectAlignError(
            f"{path} was written by directalign {record['versions']['directalign']} in another "
            "format: continue it with that version"
        )
    changes_at_resume(path, record["config"], run)
    data, batch_size = record["data"], global_batch_size(run, group)
    network = "architecture", record["architecture"], architecture(state.denoiser)
    base = "base model", record.get("base") or state.base, state.base
    for (what, theirs, ours), keys in (
        (network, "model.path or model.lora"),
        (base, "the files behind model.path"),
        (
            ("data", data["fingerprint"], state.data),
            "the contents of data.prompts, data.images, data.pairs or data.edits",
        ),
    ):
        if theirs != ours:
            raise DirectAlignError(
                f"{path} is of another {what} ({theirs}, not {ours}): {keys} has changed; restore "
                "it or choose another --out"
            )
    if (before := data["global_batch_size"]) != batch_size:
        raise DirectAlignError(
            f"{path} is of another global batch: {before} prompts per step on {data['ranks']} "
            f"ranks, and {batch_size} on {group.size} now; set train.global_batch_size: {before}, "
            "or data.batch_size and train.gradient_accumulation_steps to match"
        )
    if record["step"] > run.train.num_steps:
        raise DirectAlignError(
            f"{path} is at step {record['step']}, past train.num_steps {run.train.num_steps}; "
            "raise train.num_steps to continue it"
        )
    try:
        return read_state(path, state, group)
    except DirectAlignError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), ''):.200}"
        raise DirectAlignError(
            f"{path}: not a checkpoint of this run ({reason}); remove this folder, and --resume "
            "continues from the one before it"
        ) from error
