"""Checkpoints of a run: written atomically, the newest few kept, the newest whole one found again and checked before use.

A damaged checkpoint is named and the one before it is used, never silently; one of another config, architecture, data
set or number of ranks is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..types import DirectAlignError
from . import sealed, snapshot
from .distributed import Ranks
from .snapshot import Parts

MAY_DIFFER = ("train.num_steps", "train.checkpoint_every", "train.keep_checkpoints", "train.sample_every", "evaluate.")


def path_of(folder: Path, step: int) -> Path:
    """`checkpoints/step-000040` for step 40."""
    return folder / f"step-{step:06d}"


def all_of(folder: Path) -> list[Path]:
    """The published checkpoints, oldest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 6 + "*"))


def save(folder: Path, parts: Parts, step: int, ranks: Ranks) -> Path:
    """Write the state after `step` updates and drop the oldest checkpoints; the former ones stay whatever goes wrong."""
    target = path_of(folder, step)
    partial = sealed.partial_of(target)
    try:
        if ranks.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            sealed.sweep(folder)
            partial.mkdir()
        ranks.wait()
        snapshot.write(partial, parts, step, ranks)
        ranks.wait()
        if ranks.is_main:
            sealed.publish(target)
            _drop_oldest(folder, parts.run.train.keep_checkpoints)
        ranks.wait()
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DirectAlignError(_not_written(target, error)) from error
    return target


def find(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint, None when there is none yet. Passing over a damaged one is said; if all are damaged it is an error."""
    damaged: list[str] = []
    for candidate in reversed(all_of(folder)):
        trouble = sealed.damage(candidate)
        if trouble is None:
            if damaged:
                say(f"damaged checkpoint passed over: {'; '.join(damaged)}. Using {candidate} instead")
            return candidate
        damaged.append(f"{candidate} ({trouble})")
    if damaged:
        raise DirectAlignError(f"no checkpoint can be used: {'; '.join(damaged)}; start again in another --out")
    return None


def restore(path: Path, parts: Parts, ranks: Ranks) -> int:
    """Put the checkpoint's state into `parts` after making sure that it belongs to this run; the updates behind it."""
    record = snapshot.read_record(path)
    _refuse_other_config(path, record["config"], parts.run.model_dump(mode="json"))
    _refuse_other(path, "architecture", record["architecture"], snapshot.architecture(parts.denoiser), "model.path or model.lora")
    _refuse_other(path, "data", record["data"]["fingerprint"], parts.data, "the contents of data.prompts or data.images")
    _refuse_other(path, "number of ranks", record["data"]["ranks"], ranks.size, "torchrun --nproc-per-node")
    if record["step"] > parts.run.train.num_steps:
        raise DirectAlignError(f"{path} is at step {record['step']}, past train.num_steps {parts.run.train.num_steps}; raise train.num_steps to continue it")
    return snapshot.restore(path, parts, ranks)


def _refuse_other_config(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    then, now = _flat(theirs), _flat(ours)
    keys = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key) and not key.startswith(MAY_DIFFER)]
    if keys:
        changes = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in keys)
        raise DirectAlignError(f"{path} is of another config: {changes}; restore these values or choose another --out")


def _refuse_other(path: Path, what: str, theirs: object, ours: object, cause: str) -> None:
    if theirs != ours:
        raise DirectAlignError(f"{path} is of another {what} ({theirs}, not {ours}): {cause} has changed; put it back or choose another --out")


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _drop_oldest(folder: Path, keep: int) -> None:
    for old in all_of(folder)[:-keep]:
        shutil.rmtree(old)


def _not_written(target: Path, error: Exception) -> str:
    cause = "no space left on the disk" if sealed.is_disk_full(error) else str(error)
    last = all_of(target.parent)
    kept = f"{last[-1]} is kept; free some space and go on with --resume" if last else "there was none before it; free some space and start again"
    return f"cannot write checkpoint {target}: {cause}; {kept}"
