"""The rules of the output folder: a run never writes over another one, and `--resume` continues only what is there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def held(out: Path) -> Iterator[str | None]:
    """No other process trains in the folder meanwhile; the hold ends with this process, however that ends.

    Gives None, or a line to say where the file system knows no locks. Raises: DirectAlignError while another process is at work.
    """
    place = os.open(out, os.O_RDONLY)
    try:
        yield _lock(place, out)
    finally:
        os.close(place)


def _lock(place: int, out: Path) -> str | None:
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DirectAlignError(f"--out {out}: another process is training in it; wait for it, or end it first") from error
    except OSError as error:
        return f"{out} cannot be locked ({error.strerror}): let no other process train in it meanwhile"
    return None
