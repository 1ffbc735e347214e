"""What a checkpoint holds: everything that a step reads or changes, as files that load with `weights_only=True`.

record.json         step, resolved config, architecture, schedule, data position, versions
weights.safetensors trained weights            ema.safetensors   their average
optimizer.pt        AdamW's moments            rank-R.pt         random states and the method's memory of rank R
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import config
from ..interfaces import Method
from . import random_state
from .distributed import Ranks
from .ema import Average
from .optim import learning_rate
from .summary import versions


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
    """Fingerprint of class, names, shapes and what is trained; equal for equal networks whatever their weights."""
    lines = [type(denoiser).__name__, *(f"{name} {tuple(p.shape)} {p.requires_grad}" for name, p in denoiser.named_parameters())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write(folder: Path, parts: Parts, step: int, ranks: Ranks) -> None:
    """Put this rank's share of the state after `step` updates into `folder`; rank 0 writes what all ranks have in common."""
    torch.save({"random": random_state.capture(), "method": dict(parts.method.state_dict())}, folder / f"rank-{ranks.rank}.pt")
    if not ranks.is_main:
        return
    save_file(_on_cpu(parts.parameters), folder / "weights.safetensors")
    if parts.average is not None:
        save_file(_on_cpu(parts.average.tensors()), folder / "ema.safetensors")
    torch.save(parts.optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "record.json").write_text(json.dumps(_record(parts, step, ranks), indent=1), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The checkpoint's `record.json`."""
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def restore(folder: Path, parts: Parts, ranks: Ranks) -> int:
    """Put everything back in place; the number of updates that the checkpoint has behind it."""
    step = int(read_record(folder)["step"])
    weights = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in parts.parameters.items():
            parameter.copy_(weights[name])
    if parts.average is not None:
        parts.average.restore(load_file(folder / "ema.safetensors"), step)
    parts.optimizer.load_state_dict(_load(folder / "optimizer.pt"))
    own = _load(folder / f"rank-{ranks.rank}.pt")
    parts.method.load_state_dict(own["method"])
    random_state.restore(own["random"])
    return step


def _record(parts: Parts, step: int, ranks: Ranks) -> dict[str, Any]:
    settings = parts.run.train
    return {
        "step": step,
        "config": parts.run.model_dump(mode="json"),
        "architecture": architecture(parts.denoiser),
        "schedule": {"kind": settings.schedule, "learning_rate": learning_rate(settings, min(step, settings.num_steps - 1))},
        "data": {"fingerprint": parts.data, "batches_per_rank": step * settings.accumulation, "ranks": ranks.size},
        "versions": versions(),
    }


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
