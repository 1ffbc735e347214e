"""Arms and seeds become training runs: each in a folder of its own, kept when finished, resumed when not.

OUT/runs/ARM-seedS/   what directalign train leaves, without its checkpoints
"""

from __future__ import annotations

from ...config import RunConfig
from ...config.load import dump_run, load_run
from ...training import run
from ...types import DirectAlignError
from .records import Arm, Row, rows_of
import shutil
from collections.abc import Sequence
from pathlib import Path


__all__ = ["Arm", "is_finished", "run_arm", "run_arms", "settings_of", "trained"]


def run_arms(study: str, arms: Sequence[Arm], seeds: Sequence[int], out: Path, recipes: Path) -> list[Row]:
    """All arms at the first seed, then at the next: one printed line per finished run; the rows of them all, arm by arm.

    Raises: DirectAlignError for a recipe that is missing, and as `run_arm` does.
    """
    for seed in seeds:
        for arm in arms:
            folder = run_arm(arm, seed, out, recipes)
            print(_line(rows_of(study, arm, seed, folder)), flush=True)
    return [row for arm in arms for seed in seeds for row in rows_of(study, arm, seed, folder_of(arm, seed, out))]


def run_arm(arm: Arm, seed: int, out: Path, recipes: Path) -> Path:
    """Train one arm from one seed; returns its folder. A finished run is kept, an unfinished one goes on.

    The checkpoints of a finished run are removed: nothing continues it, and a study has many runs.

    Raises:
        DirectAlignError: a finished run of other settings is there, or as `train.run` does.
    """
    folder = trained(settings_of(arm, seed, recipes), folder_of(arm, seed, out))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def folder_of(arm: Arm, seed: int, out: Path) -> Path:
    """Where the run of an arm from a seed lies."""
    return out / "runs" / f"{arm.name}-seed{seed}"


def settings_of(arm: Arm, seed: int, recipes: Path) -> RunConfig:
    """The recipe with the arm's overrides and the seed laid over it; one checkpoint is kept at a time."""
    return load_run(recipes / f"{arm.recipe}.yaml", ["train.keep_checkpoints=1", *arm.overrides, f"seed={seed}"])


def trained(settings: RunConfig, folder: Path) -> Path:
    """`folder` with the finished run of these settings in it, trained or continued where it is not there yet."""
    if not is_finished(folder, settings):
        run(settings, folder, resume=(folder / "run.yaml").exists())
    return folder


def is_finished(folder: Path, settings: RunConfig) -> bool:
    """Whether the run is there to its end; a finished run of other settings is an error, never shown as this one."""
    if not (folder / "summary.json").exists():
        return False
    if dump_run(load_run(folder / "run.yaml")) != dump_run(settings):  # keys that are newer than the run have their defaults
        raise DirectAlignError(f"{folder} holds a finished run of other settings than the recipe has now: remove {folder}, or choose another --out")
    return True


def _line(rows: Sequence[Row]) -> str:
    last = rows[-1]
    numbers = [f"{name.replace('_', ' ')} {last[name]:.3f}" for name in ("photo_rate", "content", "color_drift", "reward") if name in last]
    return f"{last['study']}: {last['arm']}, seed {last['seed']}: update {last['step']} after {last['seconds']:.0f} s, {', '.join(numbers)}"
