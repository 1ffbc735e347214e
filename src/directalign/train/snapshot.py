"""What a checkpoint holds: everything that a step reads or changes, as files that load with `weights_only=True`.

record.json    step, resolved config, architecture, schedule, data position, ranks, versions
*.safetensors  weights.NAME, ema.NAME, and the optimiser's tensors: exp_avg.NAME, ...
optimizer.pt   the optimiser's counts and rates        rank-R.pt   random states and the method's memory of rank R
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import config
from ..interfaces import Method
from ..types import DirectAlignError
from . import random_state, tensors
from .distributed import Ranks
from .ema import Average
from .feed import accumulation
from .optim import learning_rate
from .sharding import class_of, empty_beside
from .summary import versions

FORMAT = 2
"""Raised when a checkpoint can no longer be read by the version before."""
WEIGHTS, AVERAGE = "weights", "ema"
OWN_SAMPLES = "rollouts"
"""What a method keeps under this name are samples of its own rank."""


@dataclass(frozen=True)
class Parts:
    """The things whose state is kept, each by reference."""

    run: config.Run
    denoiser: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: Average | None
    method: Method
    data: str
    """Fingerprint of the prompts and images: a position is worth nothing in another list."""


def architecture(denoiser: nn.Module) -> str:
    """Fingerprint of class, names, shapes and what is trained; equal for equal networks whatever their weights, sharded or not."""
    lines = [class_of(denoiser).__name__, *(f"{name} {tuple(p.shape)} {p.requires_grad}" for name, p in denoiser.named_parameters())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def global_batch_size(run: config.Run, ranks: Ranks) -> int:
    """Prompts per update over all ranks."""
    return run.data.batch_size * accumulation(run, ranks.size) * ranks.size


def write(folder: Path, parts: Parts, step: int, ranks: Ranks) -> None:
    """Put this rank's share of the state after `step` updates into `folder`; rank 0 writes what all ranks have in common."""
    torch.save({"random": random_state.capture(), "method": dict(parts.method.state_dict())}, folder / f"rank-{ranks.rank}.pt")
    moments, rest = _optimizer_state(parts)
    average = {AVERAGE: parts.average.tensors()} if parts.average is not None else {}
    tensors.write(folder, {WEIGHTS: parts.parameters, **average, **moments}, ranks)
    if ranks.is_main:
        torch.save(rest, folder / "optimizer.pt")
        (folder / "record.json").write_text(json.dumps(_record(parts, step, ranks), indent=1), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The checkpoint's `record.json`."""
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def restore(folder: Path, parts: Parts, ranks: Ranks) -> int:
    """Put everything back in place, on as many ranks as there are now; the number of updates that the checkpoint has behind it."""
    record = read_record(folder)
    own = _memory(folder, record, parts.run, ranks)
    tensors.read(folder, {WEIGHTS: parts.parameters})
    if parts.average is not None:
        tensors.read(folder, {AVERAGE: parts.average.tensors()})
        parts.average.continue_after(record["step"])
    _restore_optimizer(folder, parts)
    parts.method.load_state_dict(own["method"])
    random_state.restore(own["random"])
    return int(record["step"])


def _memory(folder: Path, record: Mapping[str, Any], run: config.Run, ranks: Ranks) -> dict[str, Any]:
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


def _optimizer_state(parts: Parts) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by key and name of their weight, split as it is; the state without them)."""
    packed = parts.optimizer.state_dict()
    moments: dict[str, dict[str, Tensor]] = {}
    rest: dict[int, dict[str, Any]] = {}
    for place, name in enumerate(parts.parameters):
        for key, value in packed["state"].get(place, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0:
                moments.setdefault(key, {})[name] = value
            else:
                rest.setdefault(place, {})[key] = value
    return moments, {**packed, "state": rest}


def _restore_optimizer(folder: Path, parts: Parts) -> None:
    packed = _load(folder / "optimizer.pt")
    places = {name: place for place, name in enumerate(parts.parameters)}
    moments: dict[str, dict[str, Tensor]] = {}
    for full_name, stored in tensors.listed(folder).items():
        key, _, name = full_name.partition(".")
        if key not in (WEIGHTS, AVERAGE):
            moment = empty_beside(parts.parameters[name], stored.size, stored.properties.dtype)
            moments.setdefault(key, {})[name] = moment
            packed["state"].setdefault(places[name], {})[key] = moment
    tensors.read(folder, moments)
    parts.optimizer.load_state_dict(packed)


def _record(parts: Parts, step: int, ranks: Ranks) -> dict[str, Any]:
    settings = parts.run.train
    return {
        "format": FORMAT,
        "step": step,
        "config": parts.run.model_dump(mode="json"),
        "architecture": architecture(parts.denoiser),
        "schedule": {"kind": settings.schedule, "learning_rate": learning_rate(settings, min(step, settings.num_steps - 1))},
        "data": {"fingerprint": parts.data, "ranks": ranks.size, "global_batch_size": global_batch_size(parts.run, ranks)},
        "versions": versions(),
    }


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)
