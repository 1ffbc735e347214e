"""`summary.json`: what was run, on what, how long the alignment took, and what it changed."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__, config
from .stopping import rules_of, shares

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that shape the numbers."""
    return {"directalign": __version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """Processor, cores, torch threads, system and GPU (None without one)."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def commit() -> str | None:
    """The git commit that this package is checked out at, with `+changes` when files differ from it; None outside its own git tree."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)  # another project's tree says nothing of us
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+changes" if changed else found


def summarise(run: config.Run, history: Sequence[dict[str, Any]], ranks: int, trained_weights: int) -> dict[str, Any]:
    """The summary, from the records in metrics.jsonl; `before` and `after` are measurements of the base model and of the weights that are left (None if none).

    `stopped` says why the run ended itself, None if it did not; `kept` whose weights are left and how much of each drift budget they
    use on all pairs, None in a run without stop rules. `align_seconds` adds up the steps alone: no measuring, no sample grids, no loading, no checkpoints.
    """
    steps = [record for record in history if record["event"] == "step"]
    measured = [record for record in history if record["event"] == "evaluate"]
    before = measured[0] if measured and measured[0]["step"] == 0 else None
    last = measured[-1] if measured and measured[-1]["step"] == len(steps) > 0 else None
    left = _last(history, "kept")
    return {
        "name": run.name,
        "num_steps": len(steps),
        "seed": run.seed,
        "ranks": ranks,
        "trained_weights": trained_weights,
        "align_seconds": sum(record["seconds"] for record in steps),
        "stopped": _last(history, "stop"),
        "kept": _kept(run, left, before),
        "before": before,
        "after": left or last,
        "final": {key: steps[-1][key] for key in ("step", "loss", "reward", "grad_norm")} if steps else None,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def _last(history: Sequence[dict[str, Any]], event: str) -> dict[str, Any] | None:
    return next((record for record in reversed(history) if record["event"] == event), None)


def _kept(run: config.Run, left: dict[str, Any] | None, before: dict[str, Any] | None) -> dict[str, Any] | None:
    rules = rules_of(run)
    if rules is None or left is None or before is None:
        return None
    return {"step": left["step"], "judge": rules.judge, "used": shares(rules, left, before)}
