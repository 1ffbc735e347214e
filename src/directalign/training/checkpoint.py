"""Checkpoints: everything that a training step reads or changes, written atomically and verified before a resume.

record.json    step, resolved config, architecture, schedule, data position, ranks, versions
*.safetensors  weights.NAME, ema.NAME, and the optimizer's tensors: exp_avg.NAME, ...
optimizer.pt   the optimizer's counts and rates        rank-R.pt   random states and the method's state of rank R

The newest few are kept. A damaged checkpoint is reported and the one before it used. One of another config, architecture,
data set or global batch is refused. The number of processes may differ between writing and reading.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from .. import config
from ..diffusion.rng import generator_for
from ..interfaces import Method
from ..io import atomic
from ..types import DirectAlignError
from .data import accumulation
from .distributed import TorchProcessGroup, class_of, empty_beside
from .optim import EMA, learning_rate
from .run_folder import versions

logger = logging.getLogger(__name__)


def write_tensors(
    folder: Path, groups: Mapping[str, Mapping[str, Tensor]], ranks: TorchProcessGroup
) -> None:
    """Every tensor of every group, under GROUP.NAME: rank 0 writes a file per group, or each rank its shards."""
    named = {
        group: {f"{group}.{name}": tensor.detach() for name, tensor in tensors.items()}
        for group, tensors in groups.items()
    }
    merged = {name: tensor for tensors in named.values() for name, tensor in tensors.items()}
    if any(isinstance(tensor, DTensor) for tensor in merged.values()):
        dcp.save(
            merged, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True)
        )
    elif ranks.is_main:
        for group, tensors in named.items():
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                folder / f"{group}.safetensors",
            )


def list_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Dtype and whole shape of every tensor in the folder, by GROUP.NAME."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)
    }


def read_tensors(folder: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill the tensors of the groups, whole or sharded, with what the folder has under their names."""
    wanted = {
        f"{group}.{name}": tensor.detach()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        raise DirectAlignError(
            f"{folder} does not fit this model: {first_failure(error)}; choose another --out"
        ) from error


def first_failure(error: CheckpointException) -> BaseException:
    """The error on the first rank that had one."""
    return next(iter(error.failures.values()))[0]


GLOBAL_STREAM = 1_000_003
"""Keeps these seeds apart from those of the noise and the moves."""


def seed_all(seed: int) -> None:
    """Seed the four generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed the four generators for update `step` (0 is the first), alike on all ranks."""
    seed_all(generator_for(seed, GLOBAL_STREAM, step, 0).initial_seed())


def random_state() -> dict[str, Any]:
    """The states of all generators: lists, numbers and byte tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            [int(key) for key in keys],
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put all generators back where `random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


FORMAT = 2
"""Raised when a checkpoint can no longer be read by the version before."""
WEIGHTS, AVERAGE = "weights", "ema"
OWN_SAMPLES = "rollouts"
"""What a method keeps under this name are samples of its own rank."""


@dataclass(frozen=True)
class TrainState:
    """The things whose state is kept, each by reference."""

    run: config.RunConfig
    denoiser: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: EMA | None
    method: Method
    data: str
    """Fingerprint of the prompts and images: a position is worth nothing in another list."""


def architecture(denoiser: nn.Module) -> str:
    """Fingerprint of class, names, shapes and what is trained; equal for equal networks whatever their weights, sharded or not."""
    lines = [
        class_of(denoiser).__name__,
        *(f"{name} {tuple(p.shape)} {p.requires_grad}" for name, p in denoiser.named_parameters()),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def global_batch_size(run: config.RunConfig, ranks: TorchProcessGroup) -> int:
    """Prompts per update over all ranks."""
    return run.data.batch_size * accumulation(run, ranks.size) * ranks.size


def write_state(folder: Path, state: TrainState, step: int, ranks: TorchProcessGroup) -> None:
    """Put this rank's share of the state after `step` updates into `folder`; rank 0 writes what all ranks have in common."""
    torch.save(
        {"random": random_state(), "method": dict(state.method.state_dict())},
        folder / f"rank-{ranks.rank}.pt",
    )
    moments, rest = _optimizer_state(state)
    average = {AVERAGE: state.average.tensors()} if state.average is not None else {}
    write_tensors(folder, {WEIGHTS: state.parameters, **average, **moments}, ranks)
    if ranks.is_main:
        torch.save(rest, folder / "optimizer.pt")
        (folder / "record.json").write_text(
            json.dumps(_record(state, step, ranks), indent=1), encoding="utf-8"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """The checkpoint's `record.json`."""
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def restore_state(folder: Path, state: TrainState, ranks: TorchProcessGroup) -> int:
    """Put everything back in place, on as many ranks as there are now; the number of updates that the checkpoint has behind it."""
    record = read_record(folder)
    own = _memory(folder, record, state.run, ranks)
    read_tensors(folder, {WEIGHTS: state.parameters})
    if state.average is not None:
        read_tensors(folder, {AVERAGE: state.average.tensors()})
        state.average.continue_after(record["step"])
    _restore_optimizer(folder, state)
    state.method.load_state_dict(own["method"])
    restore_random_state(own["random"])
    return int(record["step"])


def _memory(
    folder: Path, record: Mapping[str, Any], run: config.RunConfig, ranks: TorchProcessGroup
) -> dict[str, Any]:
    """What this rank remembers; where the batch is shared out otherwise than then, what rank 0 does, which all have in common."""
    former, batch_size = record["data"]["ranks"], record["config"]["data"]["batch_size"]
    if (former, batch_size) == (ranks.size, run.data.batch_size):
        return _load(folder / f"rank-{ranks.rank}.pt")
    memory = _load(folder / "rank-0.pt")
    if memory["method"].get(OWN_SAMPLES):
        raise DirectAlignError(
            f"{folder} holds rollouts that each rank goes on with (method.updates_per_rollout): continue it on another number of ranks than its "
            f"{former}, or with another data.batch_size than {batch_size}, from a checkpoint where rollouts begin anew; or put both back"
        )
    return memory


def _optimizer_state(state: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by key and name of their weight, split as it is; the state without them)."""
    packed = state.optimizer.state_dict()
    moments: dict[str, dict[str, Tensor]] = {}
    rest: dict[int, dict[str, Any]] = {}
    for place, name in enumerate(state.parameters):
        for key, value in packed["state"].get(place, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0:
                moments.setdefault(key, {})[name] = value
            else:
                rest.setdefault(place, {})[key] = value
    return moments, {**packed, "state": rest}


def _restore_optimizer(folder: Path, state: TrainState) -> None:
    packed = _load(folder / "optimizer.pt")
    places = {name: place for place, name in enumerate(state.parameters)}
    moments: dict[str, dict[str, Tensor]] = {}
    for full_name, stored in list_tensors(folder).items():
        key, _, name = full_name.partition(".")
        if key not in (WEIGHTS, AVERAGE):
            moment = empty_beside(state.parameters[name], stored.size, stored.properties.dtype)
            moments.setdefault(key, {})[name] = moment
            packed["state"].setdefault(places[name], {})[key] = moment
    read_tensors(folder, moments)
    state.optimizer.load_state_dict(packed)


def _record(state: TrainState, step: int, ranks: TorchProcessGroup) -> dict[str, Any]:
    settings = state.run.train
    return {
        "format": FORMAT,
        "step": step,
        "config": state.run.model_dump(mode="json"),
        "architecture": architecture(state.denoiser),
        "schedule": {
            "kind": settings.schedule,
            "learning_rate": learning_rate(settings, min(step, settings.num_steps - 1)),
        },
        "data": {
            "fingerprint": state.data,
            "ranks": ranks.size,
            "global_batch_size": global_batch_size(state.run, ranks),
        },
        "versions": versions(),
    }


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)


KEPT = (
    "train.num_steps",
    "train.save_every",
    "train.keep_checkpoints",
    "train.sample_every",
    "evaluate.",
    "stop",
    "track.",
)
SHARED_OUT = (
    "data.batch_size",
    "train.gradient_accumulation_steps",
    "train.global_batch_size",
    "train.parallel",
)
MAY_DIFFER = (*KEPT, *SHARED_OUT)
"""What is kept and measured, when the run ends itself, who shows it, and how one global batch is shared out."""
NOT_COMPARED = ("evaluate.every", "evaluate.batch_size")
"""What may differ of the measurements of a run with stop rules, which compare them with the first one."""


def path_of(folder: Path, step: int) -> Path:
    """`checkpoints/step-000040` for step 40."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The updates that a published checkpoint has behind it."""
    return int(path.name.removeprefix("step-"))


def all_of(folder: Path) -> list[Path]:
    """The published checkpoints, oldest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 6 + "*"))


def save(folder: Path, state: TrainState, step: int, ranks: TorchProcessGroup) -> Path:
    """Write the state after `step` updates and drop the oldest checkpoints; the former ones stay whatever goes wrong."""
    target = path_of(folder, step)
    last = all_of(folder)
    rest = (
        f"{last[-1]} is kept; free some space and go on with --resume"
        if last
        else "there was none before it; free some space and start again"
    )
    write_sealed(target, lambda partial: write_state(partial, state, step, ranks), ranks, rest)
    if ranks.is_main:
        for old in all_of(folder)[: -state.run.train.keep_checkpoints]:
            shutil.rmtree(old)
    ranks.wait()
    return target


def write_sealed(
    target: Path,
    fill: Callable[[Path], None],
    ranks: TorchProcessGroup,
    rest: str,
    what: str = "checkpoint",
) -> None:
    """A sealed folder to which every rank adds its part with `fill`; what was there before stays whatever goes wrong.

    Raises: DirectAlignError for a disk that is full or cannot be written to; it names `what` and ends in `rest`, what is left and to be done.
    """
    partial = atomic.partial_of(target)
    try:
        if ranks.is_main:
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.sweep(target.parent)
            partial.mkdir()
        ranks.wait()
        fill(partial)
        ranks.wait()
        _publish(target, ranks)
        ranks.wait()
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cause = first_failure(error) if isinstance(error, CheckpointException) else error
        why = "no space left on the disk" if atomic.is_disk_full(cause) else str(cause)
        raise DirectAlignError(f"cannot write {what} {target}: {why}; {rest}") from error


def _publish(target: Path, ranks: TorchProcessGroup) -> None:
    """Every rank checks off its part of the files, rank 0 seals them."""
    own = atomic.sums(atomic.partial_of(target), ranks.rank, ranks.size)
    files = [found for text in ranks.texts(json.dumps(own)) for found in json.loads(text).items()]
    if ranks.is_main:
        atomic.publish(target, dict(sorted(files)))


def find(folder: Path, ranks: TorchProcessGroup) -> Path | None:
    """The newest whole checkpoint, None when there is none yet. Passing over a damaged one is said; if all are damaged it is an error."""
    damaged: list[str] = []
    names = ranks.texts("\n".join(path.name for path in all_of(folder)))[0].split()
    for candidate in [folder / name for name in reversed(names)]:
        trouble = next(
            filter(None, ranks.texts(atomic.damage(candidate, ranks.rank, ranks.size) or "")), None
        )
        if trouble is None:
            if damaged:
                logger.warning(
                    f"damaged checkpoint passed over: {'; '.join(damaged)}. Using {candidate} instead"
                )
            return candidate
        damaged.append(f"{candidate} ({trouble})")
    if damaged:
        raise DirectAlignError(
            f"no checkpoint can be used: {'; '.join(damaged)}; start again in another --out"
        )
    return None


def restore(path: Path, state: TrainState, ranks: TorchProcessGroup) -> int:
    """Put the checkpoint's state into `parts` after making sure that it belongs to this run; the updates behind it."""
    record = read_record(path)
    if record.get("format") != FORMAT:
        raise DirectAlignError(
            f"{path} was written by directalign {record['versions']['directalign']} in another format: continue it with that version"
        )
    _refuse_other_config(path, record["config"], state.run)
    _refuse_other(
        path,
        "architecture",
        record["architecture"],
        architecture(state.denoiser),
        "model.path or model.lora",
    )
    _refuse_other(
        path,
        "data",
        record["data"]["fingerprint"],
        state.data,
        "the contents of data.prompts or data.images",
    )
    _refuse_other_batch(path, record["data"], state, ranks)
    if record["step"] > state.run.train.num_steps:
        raise DirectAlignError(
            f"{path} is at step {record['step']}, past train.num_steps {state.run.train.num_steps}; raise train.num_steps to continue it"
        )
    return restore_state(path, state, ranks)


def _refuse_other_config(path: Path, theirs: dict[str, Any], run: config.RunConfig) -> None:
    then, now = _flat(theirs), _flat(run.model_dump(mode="json"))
    keys = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    refused = [key for key in keys if not key.startswith(MAY_DIFFER)]
    if refused:
        raise DirectAlignError(
            f"{path} is of another config: {_changes(refused, then, now)}; restore these values or choose another --out"
        )
    uneven = [
        key for key in keys if key.startswith("evaluate.") and not key.startswith(NOT_COMPARED)
    ]
    if uneven and run.early_stopping is not None:
        raise DirectAlignError(
            f"{path}: {_changes(uneven, then, now)}, and stop compares all measurements with the first; restore these values or leave stop out"
        )


def _changes(keys: list[str], then: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in keys)


def _refuse_other(path: Path, what: str, theirs: object, ours: object, cause: str) -> None:
    if theirs != ours:
        raise DirectAlignError(
            f"{path} is of another {what} ({theirs}, not {ours}): {cause} has changed; put it back or choose another --out"
        )


def _refuse_other_batch(
    path: Path, record: dict[str, Any], state: TrainState, ranks: TorchProcessGroup
) -> None:
    then, now = record["global_batch_size"], global_batch_size(state.run, ranks)
    if then != now:
        raise DirectAlignError(
            f"{path} is of another global batch: {then} prompts per update on {record['ranks']} ranks, and {now} on {ranks.size} now; "
            f"set train.global_batch_size: {then}, or data.batch_size and train.gradient_accumulation_steps so that they make {then} on all ranks"
        )


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
