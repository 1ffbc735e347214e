"""Checkpoints of a run: written atomically, the newest few kept, the newest whole one found again and checked before use.

A damaged checkpoint is named and the one before it is used, never silently; one of another config, architecture, data
set or global batch is refused. The number of processes may differ: whatever split the state then, it is read as it is split now.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from .. import config
from ..types import DirectAlignError
from . import sealed, snapshot, tensors
from .distributed import Ranks
from .snapshot import Parts

KEPT = ("train.num_steps", "train.checkpoint_every", "train.keep_checkpoints", "train.sample_every", "evaluate.", "stop", "track.")
SHARED_OUT = ("data.batch_size", "train.accumulation", "train.global_batch_size", "train.parallel")
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


def save(folder: Path, parts: Parts, step: int, ranks: Ranks) -> Path:
    """Write the state after `step` updates and drop the oldest checkpoints; the former ones stay whatever goes wrong."""
    target = path_of(folder, step)
    last = all_of(folder)
    rest = f"{last[-1]} is kept; free some space and go on with --resume" if last else "there was none before it; free some space and start again"
    write_together(target, lambda partial: snapshot.write(partial, parts, step, ranks), ranks, rest)
    if ranks.is_main:
        _drop_oldest(folder, parts.run.train.keep_checkpoints)
    ranks.wait()
    return target


def write_together(target: Path, fill: Callable[[Path], None], ranks: Ranks, rest: str, what: str = "checkpoint") -> None:
    """A sealed folder to which every rank adds its part with `fill`; what was there before stays whatever goes wrong.

    Raises: DirectAlignError for a disk that is full or cannot be written to; it names `what` and ends in `rest`, what is left and to be done.
    """
    partial = sealed.partial_of(target)
    try:
        if ranks.is_main:
            target.parent.mkdir(parents=True, exist_ok=True)
            sealed.sweep(target.parent)
            partial.mkdir()
        ranks.wait()
        fill(partial)
        ranks.wait()
        _publish(target, ranks)
        ranks.wait()
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        ranks.blame(error)
        shutil.rmtree(partial, ignore_errors=True)
        cause = tensors.first_failure(error) if isinstance(error, CheckpointException) else error
        why = "no space left on the disk" if sealed.is_disk_full(cause) else str(cause)
        raise DirectAlignError(f"cannot write {what} {target}: {why}; {rest}") from error


def _publish(target: Path, ranks: Ranks) -> None:
    """Every rank checks off its part of the files, rank 0 seals them."""
    own = sealed.sums(sealed.partial_of(target), ranks.rank, ranks.size)
    files = [found for text in ranks.texts(json.dumps(own)) for found in json.loads(text).items()]
    if ranks.is_main:
        sealed.publish(target, dict(sorted(files)))


def find(folder: Path, say: Callable[[str], None], ranks: Ranks) -> Path | None:
    """The newest whole checkpoint, None when there is none yet. Passing over a damaged one is said; if all are damaged it is an error."""
    damaged: list[str] = []
    names = ranks.texts("\n".join(path.name for path in all_of(folder)))[0].split()
    for candidate in [folder / name for name in reversed(names)]:
        trouble = next(filter(None, ranks.texts(sealed.damage(candidate, ranks.rank, ranks.size) or "")), None)
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
    if record.get("format") != snapshot.FORMAT:
        raise DirectAlignError(f"{path} was written by directalign {record['versions']['directalign']} in another format: continue it with that version")
    _refuse_other_config(path, record["config"], parts.run)
    _refuse_other(path, "architecture", record["architecture"], snapshot.architecture(parts.denoiser), "model.path or model.lora")
    _refuse_other(path, "data", record["data"]["fingerprint"], parts.data, "the contents of data.prompts or data.images")
    _refuse_other_batch(path, record["data"], parts, ranks)
    if record["step"] > parts.run.train.num_steps:
        raise DirectAlignError(f"{path} is at step {record['step']}, past train.num_steps {parts.run.train.num_steps}; raise train.num_steps to continue it")
    return snapshot.restore(path, parts, ranks)


def _refuse_other_config(path: Path, theirs: dict[str, Any], run: config.Run) -> None:
    then, now = _flat(theirs), _flat(run.model_dump(mode="json"))
    keys = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    refused = [key for key in keys if not key.startswith(MAY_DIFFER)]
    if refused:
        raise DirectAlignError(f"{path} is of another config: {_changes(refused, then, now)}; restore these values or choose another --out")
    uneven = [key for key in keys if key.startswith("evaluate.") and not key.startswith(NOT_COMPARED)]
    if uneven and run.stop is not None:
        raise DirectAlignError(
            f"{path}: {_changes(uneven, then, now)}, and stop compares all measurements with the first; restore these values or leave stop out"
        )


def _changes(keys: list[str], then: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in keys)


def _refuse_other(path: Path, what: str, theirs: object, ours: object, cause: str) -> None:
    if theirs != ours:
        raise DirectAlignError(f"{path} is of another {what} ({theirs}, not {ours}): {cause} has changed; put it back or choose another --out")


def _refuse_other_batch(path: Path, record: dict[str, Any], parts: Parts, ranks: Ranks) -> None:
    then, now = record["global_batch_size"], snapshot.global_batch_size(parts.run, ranks)
    if then != now:
        raise DirectAlignError(
            f"{path} is of another global batch: {then} prompts per update on {record['ranks']} ranks, and {now} on {ranks.size} now; "
            f"set train.global_batch_size: {then}, or data.batch_size and train.accumulation so that they make {then} on all ranks"
        )


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _drop_oldest(folder: Path, keep: int) -> None:
    for old in all_of(folder)[:-keep]:
        shutil.rmtree(old)
