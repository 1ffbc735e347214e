"""The rules of the output folder: a run never writes over another one, and `--resume` continues only what is there."""

from __future__ import annotations

from pathlib import Path

from ..types import DirectAlignError

OWN_NAMES = (
    *("run.yaml", "metrics.jsonl", "checkpoints", "best", "samples", "tensorboard", "tracked.json", "wandb", "control_tokens", "summary.json", "report.html"),
    *("lora.safetensors", "transformer", "unet"),
)


def claim(out: Path, resume: bool) -> None:
    """Make sure that `out` may be written to, and that it exists; refuse otherwise with the remedy."""
    check(out, resume)
    make(out)


def check(out: Path, resume: bool) -> None:
    """Refuse an output folder that holds another run, or no run to resume; nothing is made."""
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"--out {out} is a file; name a folder")
    if resume:
        _check_former(out)
    else:
        _check_new(out)


def _check_former(out: Path) -> None:
    if not out.exists():
        raise DirectAlignError(f"--resume: there is no folder {out}; leave --resume out to start a new run there")
    if not (out / "run.yaml").is_file():
        raise DirectAlignError(f"--resume: {out} holds no run (no run.yaml); leave --resume out to start a new run there")


def _check_new(out: Path) -> None:
    taken = [name for name in OWN_NAMES if (out / name).exists()]
    if taken:
        raise DirectAlignError(f"--out {out} already holds a run ({', '.join(taken)}); add --resume to continue it, or name another folder")


def make(out: Path) -> None:
    """The folder, with those above it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectAlignError(f"--out {out} cannot be made: {error.strerror}; name a folder that you may write to") from error
