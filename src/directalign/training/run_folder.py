"""The output folder of a run: check it, copy control tokens, content of `summary.json`.

A run never overwrites another one, and `--resume` continues only what exists.
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__, config
from ..rewards.soft_prompts import is_tokens_file
from ..types import DirectAlignError
from . import run_log

CONTROL_TOKENS = "control_tokens"
OWN_NAMES = (
    *("run.yaml", "metrics.jsonl", "checkpoints", "best", "samples", "tensorboard"),
    *("tracked.json", "wandb", CONTROL_TOKENS, "summary.json", "report.html"),
    *("lora.safetensors", "transformer", "unet", "images.jsonl"),
    "metric_names.json",
)
"""Files and folders that a run writes."""
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def check(out: Path, resume: bool) -> None:
    """Refuse an output folder that holds another run, or none to resume; creates nothing."""
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"--out {out} is a file; name a folder")
    taken = [name for name in OWN_NAMES if (out / name).exists()]
    if taken and not resume:
        raise DirectAlignError(
            f"--out {out} already holds a run ({', '.join(taken)}); add --resume to continue it, "
            "or name another folder"
        )
    if resume and not (out / "run.yaml").is_file():
        found = f"{out} holds no run (no run.yaml)" if out.exists() else f"there is no folder {out}"
        raise DirectAlignError(f"--resume: {found}; remove --resume to start a new run there")
    if resume:
        run_log.read(out)


def copy_control_tokens(run: config.RunConfig, out: Path) -> None:
    """Copy the recipe's files of learned tokens into `out/control_tokens`, numbered in order.

    Raises: DirectAlignError if a file has changed since the run began.
    """
    sections = [run.method.control_phrases]
    if isinstance(run.reward, config.MixtureConfig):
        sections += [member.control_phrases for member in run.reward.members]
    phrases = [p for section in sections if section for p in (*section.positive, *section.negative)]
    files = [Path(phrase) for phrase in dict.fromkeys(phrases) if is_tokens_file(phrase)]
    for number, file in enumerate(files):
        copy = out / CONTROL_TOKENS / f"{number}-{file.name}"
        content = file.expanduser().read_bytes()
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(content)
        elif copy.read_bytes() != content:
            raise DirectAlignError(
                f"{file}: not the tokens that the run in {out} began with; restore them from "
                f"{copy}, or start a new run"
            )


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that affect the numbers."""
    own = {"directalign": __version__, "python": platform.python_version()}
    return own | {name: _version(name) for name in PACKAGES}


_version = cache(version)  # reads files of the installation


def machine() -> dict[str, Any]:
    """System, processor, cores, torch threads and GPU (None without one)."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str | None:
    """The git commit of this package, `+changes` if files differ; None outside its own git tree."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails in another project's tree
        found, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+changes" if changed else found


def where() -> dict[str, Any]:
    """What a comparison records of the place where it was made."""
    return {"commit": commit(), "machine": machine(), "versions": versions()}


def summarize(
    run: config.RunConfig,
    history: Sequence[dict[str, Any]],
    ranks: int,
    trained_weights: int,
    kept: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of summary.json from the records in metrics.jsonl.

    `before` and `after` are evaluations of the base model and of the exported weights, None if
    there are none; `references` is the record of what they stand beside, None if it was not
    measured; `stopped` is the record of a stop rule that ended the run; `kept`: see
    `early_stopping.kept_summary`. `align_seconds` sums the steps, without evaluation, sample grids,
    loading and checkpoints.
    """
    steps, measured = ([r for r in history if r["event"] == e] for e in ("step", "evaluate"))
    final = measured[-1] if measured and measured[-1]["step"] == len(steps) > 0 else None
    names = ("step", "loss", "reward", "grad_norm")
    return {
        "name": run.name,
        "model": run.model.model_dump(mode="json"),
        "num_steps": len(steps),
        "seed": run.seed,
        "ranks": ranks,
        "trained_weights": trained_weights,
        "align_seconds": sum(record.get("seconds", 0.0) for record in steps),
        "stopped": run_log.last(history, "stop"),
        "kept": kept,
        "before": measured[0] if measured and measured[0]["step"] == 0 else None,
        "after": run_log.last(history, "kept") or final,
        "references": run_log.last(history, "references"),
        "final": {name: steps[-1].get(name) for name in names} if steps else None,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }
