"""The best weights so far: `best/step-NNNNNN/weights.safetensors`, whole and sealed as checkpoints are, of a run that may end itself.

What is kept are the finished weights, the average where there is one. Older ones are dropped when neither the run as it stands
nor one that is continued from any of its checkpoints would still choose them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import nn

from ..types import DirectAlignError
from . import checkpoint, sealed, tensors
from .distributed import Ranks
from .snapshot import WEIGHTS

FOLDER = "best"


def path_of(out: Path, step: int) -> Path:
    """`best/step-000040` for step 40."""
    return checkpoint.path_of(out / FOLDER, step)


def write(out: Path, parameters: Mapping[str, nn.Parameter], step: int, ranks: Ranks) -> None:
    """Keep the weights as they are now, on all ranks together; nothing is left of an attempt that fails.

    Raises: DirectAlignError for a disk that is full or that cannot be written to.
    """
    fill, rest = lambda partial: tensors.write(partial, {WEIGHTS: parameters}, ranks), "free some space and go on with --resume"
    checkpoint.write_together(path_of(out, step), fill, ranks, rest, "best weights")


def read(out: Path, parameters: Mapping[str, nn.Parameter], step: int, ranks: Ranks) -> None:
    """Put the weights of `step` in the place of the present ones.

    Raises: DirectAlignError where they are damaged.
    """
    folder = path_of(out, step)
    trouble = next(filter(None, ranks.texts(sealed.damage(folder, ranks.rank, ranks.size) or "")), None)
    if trouble is not None:
        raise DirectAlignError(f"{folder}: damaged ({trouble}); continue with --resume --out {out}: the best of the others is left instead")
    tensors.read(folder, {WEIGHTS: parameters})


def steps(out: Path) -> list[int]:
    """The updates whose weights are there, rising."""
    return [checkpoint.step_of(path) for path in checkpoint.all_of(out / FOLDER)]


def sweep(out: Path, done: int, say: Callable[[str], None]) -> set[int]:
    """Remove what a former process left beyond `done` updates and what is damaged, which is said; the updates that are left."""
    sealed.sweep(out / FOLDER)
    for step in steps(out):
        trouble = sealed.damage(path_of(out, step)) if step <= done else None
        if trouble is not None:
            say(f"damaged weights removed: {path_of(out, step)} ({trouble}). The best of the others will be kept")
        if step > done or trouble is not None:
            shutil.rmtree(path_of(out, step))
    return set(steps(out))


def drop(out: Path, needed: Collection[int]) -> None:
    """Remove the weights of all other updates."""
    for step in steps(out):
        if step not in needed:
            shutil.rmtree(path_of(out, step))
