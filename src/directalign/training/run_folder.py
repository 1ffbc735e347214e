"""The output folder of a run: claim and lock it, copy learned control tokens into it, write `summary.json`.

A run never writes over another one, and `--resume` continues only what is there.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .. import __version__, config
from ..rewards.soft_prompts import is_tokens_file
from ..types import DirectAlignError

logger = logging.getLogger(__name__)

OWN_NAMES = (
    *(
        "run.yaml",
        "metrics.jsonl",
        "checkpoints",
        "best",
        "samples",
        "tensorboard",
        "tracked.json",
        "wandb",
        "control_tokens",
        "summary.json",
        "report.html",
    ),
    *("lora.safetensors", "transformer", "unet"),
)


def claim(out: Path, resume: bool) -> None:
    """Check `out` and create it."""
    check(out, resume)
    make(out)


def check(out: Path, resume: bool) -> None:
    """Refuse an output folder that holds another run, or no run to resume; creates nothing."""
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"--out {out} is a file; name a folder")
    taken = [name for name in OWN_NAMES if (out / name).exists()]
    if taken and not resume:
        raise DirectAlignError(
            f"--out {out} already holds a run ({', '.join(taken)}); add --resume to continue it, or name another folder"
        )
    if resume and not (out / "run.yaml").is_file():
        found = f"{out} holds no run (no run.yaml)" if out.exists() else f"there is no folder {out}"
        raise DirectAlignError(f"--resume: {found}; leave --resume out to start a new run there")


def make(out: Path) -> None:
    """The folder, with those above it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectAlignError(
            f"--out {out} cannot be made: {error.strerror}; name a folder that you may write to"
        ) from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """No other process trains in the folder meanwhile; the lock ends with this process, however that ends.

    A file system without locks gets a warning. Raises: DirectAlignError while another process trains in it.
    """
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DirectAlignError(
            f"--out {out}: another process is training in it; wait for it, or end it first"
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning(
            f"{out} cannot be locked ({error}): let no other process train in it meanwhile"
        )
    try:
        yield
    finally:
        lock.release()


LOCK = ".lock"
TOKENS = "control_tokens"


def keep_tokens(run: config.RunConfig, out: Path) -> None:
    """Copy the files of learned tokens into `out/control_tokens`, numbered in the order of the recipe.

    Raises: DirectAlignError where a file is not what it was when the run began.
    """
    for number, file in enumerate(token_files(run)):
        kept, content = out / TOKENS / f"{number}-{file.name}", file.expanduser().read_bytes()
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(content)
        elif kept.read_bytes() != content:
            raise DirectAlignError(
                f"{file}: not the tokens that the run in {out} began with; put {kept} back in its place, or start a new run"
            )


def token_files(run: config.RunConfig) -> list[Path]:
    """Every file of learned tokens that the recipe names, once."""
    members = (
        [member.control_phrases for member in run.reward.members]
        if isinstance(run.reward, config.MixtureConfig)
        else []
    )
    phrases = [
        phrase
        for words in (run.method.control_phrases, *members)
        if words is not None
        for phrase in (*words.positive, *words.negative)
    ]
    return [Path(phrase) for phrase in dict.fromkeys(phrases) if is_tokens_file(phrase)]


PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that shape the numbers."""
    return {
        "directalign": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def machine() -> dict[str, Any]:
    """Processor, cores, torch threads, system and GPU (None without one)."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def commit() -> str | None:
    """The git commit that this package is checked out at, with `+changes` when files differ from it; None outside its own git tree."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            check=True,
        )  # another project's tree says nothing of us
        found = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+changes" if changed else found


def summarise(
    run: config.RunConfig,
    history: Sequence[dict[str, Any]],
    ranks: int,
    trained_weights: int,
    kept: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of summary.json from the records in metrics.jsonl.

    `before` and `after` are evaluations of the base model and of the exported weights, None if there are none; `stopped` is the
    record of a stop rule that ended the run; `kept` see `early_stopping.kept_summary`. `align_seconds` adds up the steps
    alone: no evaluation, sample grids, loading or checkpoints.
    """

    def last(event: str) -> dict[str, Any] | None:
        return next((record for record in reversed(history) if record["event"] == event), None)

    steps = [record for record in history if record["event"] == "step"]
    measured = [record for record in history if record["event"] == "evaluate"]
    final = measured[-1] if measured and measured[-1]["step"] == len(steps) > 0 else None
    return {
        "name": run.name,
        "num_steps": len(steps),
        "seed": run.seed,
        "ranks": ranks,
        "trained_weights": trained_weights,
        "align_seconds": sum(record["seconds"] for record in steps),
        "stopped": last("stop"),
        "kept": kept,
        "before": measured[0] if measured and measured[0]["step"] == 0 else None,
        "after": last("kept") or final,
        "final": {key: steps[-1][key] for key in ("step", "loss", "reward", "grad_norm")}
        if steps
        else None,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }
