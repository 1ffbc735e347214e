"""An export's folder: whole or not there, and never over another one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..types import DirectAlignError

PARTIAL = ".partial-"


def refuse_taken(out: Path) -> None:
    """An existing file or folder is an error: exports are not written over one another."""
    if out.exists():
        raise DirectAlignError(f"--out {out}: is there already: name another folder, or remove it first")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, renamed to `out` when everything is there and removed after an error."""
    refuse_taken(out)
    partial = out.with_name(PARTIAL + out.name)
    if partial.exists():
        shutil.rmtree(partial)  # what an export left that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise
