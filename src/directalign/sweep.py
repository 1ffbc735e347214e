"""Many runs of one recipe: every seed with every combination of other values.

Each run has a folder of its own. A finished one is kept, an interrupted one resumed, one that
another process trains is left to it: so several processes may work on the same sweep, and a sweep
that was killed is repeated with the same command.
"""

import gc
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import RunConfig
from .config.load import load_run
from .errors import DirectAlignError
from .io.atomic import InUse, is_locked
from .io.yaml_text import parse_yaml
from .training import Interrupted, train_once

logger = logging.getLogger(__name__)
LONGEST_NAME = 80
FINISHED, BUSY = "finished", "in training by another process"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its folder, its settings, and the overrides that made them."""

    folder: Path
    settings: RunConfig
    overrides: tuple[str, ...]


def runs_of(
    recipe: str | Path,
    overrides: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[str],
    out: Path,
) -> list[SweepRun]:
    """All runs, the first seed of each combination first.

    Args:
        grid: KEY=VALUE,VALUE,... in YAML; every combination of all keys is a run.
    Raises:
        DirectAlignError: a wrong recipe, key or value; nothing has been trained.
    """
    axes = [*map(_axis, grid), *([[("seed", str(seed)) for seed in seeds]] if seeds else [])]
    if seeds and len({*seeds}) < len(seeds):
        raise DirectAlignError(f"--seeds {','.join(map(str, seeds))}: names a seed twice")
    keys = [axis[0][0] for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise DirectAlignError(f"--grid {twice}: is given twice; give all its values at once")
    short = [key.rpartition(".")[2] for key in keys]
    short = [each if short.count(each) == 1 else key for each, key in zip(short, keys, strict=True)]
    title, found = load_run(recipe, overrides).name, list[SweepRun]()
    for values in itertools.product(*reversed(axes)):
        point = dict(reversed(values))
        parts = [f"{n} {v}" for n, v in zip(short, point.values(), strict=True)]
        name = json.dumps(", ".join([title, *parts]), ensure_ascii=False)
        given = [*overrides, *(f"{key}={value}" for key, value in point.items()), f"name={name}"]
        folder = out / _folder_name(parts)
        found.append(SweepRun(folder, load_run(recipe, given), tuple(given)))
    return found


def _axis(text: str) -> list[tuple[str, str]]:
    """(key, value) of each value of KEY=VALUE,VALUE,..., values as JSON."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise DirectAlignError(
            f"--grid {text}: write it as KEY=VALUE,VALUE, e.g. train.learning_rate=1e-4,3e-4"
        )
    listed = parse_yaml(f"[{values}]", f"--grid {key}", "the values are not YAML")
    texts = [json.dumps(each, ensure_ascii=False) for each in listed]
    if len({*texts}) < len(texts):
        raise DirectAlignError(f"--grid {key}: {values} names a value twice")
    return [(key.strip(), each) for each in texts]


def _folder_name(parts: Sequence[str]) -> str:
    """A file name for every system; with a digest where characters had to go."""
    text = "_".join(parts)
    name = re.sub(r"[^\w.+-]+", "-", text).strip(".-")[:LONGEST_NAME]
    if name == text.replace(" ", "-"):
        return name
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def sweep(
    runs: Sequence[SweepRun], first: int, prepare: Callable[[SweepRun], Any]
) -> Iterator[tuple[SweepRun, str]]:
    """Train the runs one after the other, from place `first` on; yields each with its state.

    The state is `FINISHED`, `BUSY`, or the error that ended the run: the others go on. `prepare` is
    called before a run is trained; its DirectAlignError counts as the run's.
    """
    for run in (*runs[first:], *runs[:first]):
        try:
            if is_locked(run.folder, unknown=False):
                yield run, BUSY
                continue
            if not (run.folder / "summary.json").exists():
                prepare(run)
            train_once(run.settings, run.folder, run.overrides)
            state = FINISHED
        except InUse:
            state = BUSY
        except Interrupted:
            raise
        except (DirectAlignError, torch.OutOfMemoryError, OSError) as error:
            state = " ".join(str(error).split())
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield run, state
