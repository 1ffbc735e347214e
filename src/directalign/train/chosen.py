"""Which checkpoints of a finished or stopped run are meant, made sure of: there, whole, of one architecture, in this format; and their tensors.

They are read as a resume reads them, from one file a group or from shards over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..config_loading import load_run
from ..types import DirectAlignError
from . import checkpoint, sealed, snapshot, tensors
from .snapshot import AVERAGE, WEIGHTS


@dataclass(frozen=True)
class Chosen:
    """Checkpoints of one run, oldest first, and whose weights of theirs are meant: `weights`, or their average `ema`."""

    run: config.Run
    folders: tuple[Path, ...]
    group: str
    architecture: str

    @property
    def steps(self) -> list[int]:
        return [_step_of(folder) for folder in self.folders]


def choose(folder: Path, steps: Sequence[int] | None, last: int | None, ema: bool | None) -> Chosen:
    """Find the checkpoints and make sure that they are whole and belong together."""
    if not (folder / "run.yaml").is_file():
        raise DirectAlignError(f"{folder}: holds no run (no run.yaml): give the folder that directalign train wrote")
    run = load_run(folder / "run.yaml")
    folders = _asked_for(folder / "checkpoints", steps, last, run.train.keep_checkpoints)
    architectures = {_checked(each)["architecture"]: each for each in folders}
    if len(architectures) > 1:
        raise DirectAlignError(f"{' and '.join(map(str, architectures.values()))} are of different architectures: average checkpoints of one run")
    group = AVERAGE if ema or (ema is None and run.train.ema_decay is not None) else WEIGHTS
    if group == AVERAGE and run.train.ema_decay is None:
        raise DirectAlignError(f"--ema: {folder} kept no average of its weights (train.ema_decay): leave --ema out")
    return Chosen(run, folders, group, next(iter(architectures)))


def _asked_for(checkpoints: Path, steps: Sequence[int] | None, last: int | None, kept: int) -> tuple[Path, ...]:
    there = {_step_of(path): path for path in checkpoint.all_of(checkpoints)}
    listed = f"{checkpoints} holds {', '.join(map(str, there)) or 'none'} (train.keep_checkpoints: {kept} keeps the newest)"
    if (steps is None) == (last is None):
        raise DirectAlignError(f"say which checkpoints: --last K for the newest, or --steps 20,30,40; {listed}")
    if last is not None:
        if not 1 <= last <= len(there):
            raise DirectAlignError(f"--last {last}: there are not as many checkpoints: {listed}")
        return tuple(there.values())[-last:]
    asked = f"--steps {','.join(map(str, steps or ()))}"
    missing = [step for step in steps or () if step not in there]
    if missing or not steps:
        raise DirectAlignError(f"{asked}: no checkpoint of step {', '.join(map(str, missing)) or 'any'}: {listed}")
    if len(set(steps)) < len(steps):
        raise DirectAlignError(f"{asked}: the mean is of equal parts: give each step once")
    return tuple(there[step] for step in sorted(steps))


def _checked(path: Path) -> Mapping[str, Any]:
    trouble = sealed.damage(path)
    if trouble is not None:
        raise DirectAlignError(f"{path}: damaged ({trouble}): leave it out, or copy it again")
    record = snapshot.read_record(path)
    if record.get("format") != snapshot.FORMAT:
        raise DirectAlignError(f"{path}: written by directalign {record['versions']['directalign']} in another format: average it with that version")
    return record


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def read(folder: Path, group: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a group of a checkpoint by name, all of them if none are named."""
    stored = {name.removeprefix(f"{group}."): entry for name, entry in tensors.listed(folder).items() if name.startswith(f"{group}.")}
    found = {name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype) for name in names or stored}
    tensors.read(folder, {group: found})
    return found
