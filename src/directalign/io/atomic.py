"""Files and folders that are complete or absent: written as `.partial-NAME`, then renamed.

Folders get a manifest of checksums. A crash leaves earlier folders untouched and at most one
`.partial-` folder, which the next run removes. `damage` reports a folder that no longer matches its
manifest (truncated or missing files).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..types import DirectAlignError

try:
    import fcntl
except ImportError:
    fcntl = None

MANIFEST = "manifest.json"
PARTIAL = ".partial-"


def partial_of(target: Path) -> Path:
    """Where all ranks write `target` until it is complete; the caller holds a lock."""
    return target.with_name(PARTIAL + target.name)


def own_partial_of(target: Path) -> Path:
    """Where this process writes `target` until it is complete."""
    return target.with_name(f"{PARTIAL}{os.getpid()}-{target.name}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`: renamed to `out` on success, removed after an error.

    What a killed process left there is removed.

    Raises: DirectAlignError if `out` exists, now or at the end, or another process is writing it.
    """
    partial = partial_of(out)
    busy = f"--out {out}: another process is writing it; wait for it, or name another folder"
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial, busy):
        try:
            require_new(out)
            for leftover in partial.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield partial
            require_new(out)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial)
            raise


@contextmanager
def _locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold a lock on the folder, which ends with this process. Raises DirectAlignError: `busy`."""
    if fcntl is None:  # Windows: two processes are not kept apart
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        own = os.fstat(descriptor)
        if not (folder.exists() and os.path.samestat(own, folder.stat())):
            raise BlockingIOError  # the other process has just finished
        yield
    except BlockingIOError as error:
        raise DirectAlignError(busy) from error
    finally:
        os.close(descriptor)


def require_new(out: Path) -> None:
    """Refuse an existing file or folder. Raises: DirectAlignError."""
    if out.exists():
        raise DirectAlignError(f"--out {out}: exists already; name another folder, or remove it")


def checksums(folder: Path, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """{name: {"bytes", "sha256"}} of the files in a folder; every `parts`-th one from `part` on."""
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())[part::parts]
    }


def publish(target: Path, files: Mapping[str, Any]) -> None:
    """Write the manifest (`checksums` of all files), flush to disk and rename into place.

    An existing `target` is replaced.
    """
    partial = partial_of(target)
    (partial / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for file in partial.iterdir():
        _flush(file)
    _flush(partial)
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)
    _flush(target.parent)


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """How a published folder differs from its manifest, None if it does not.

    Checks every `parts`-th file from `part` on.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, expected in list(files.items())[part::parts]:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def write_text(file: Path, text: str) -> None:
    """Write a single file, complete or not at all."""
    partial = own_partial_of(file)
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space; torch and safetensors wrap the system's error."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def sweep(folder: Path) -> None:
    """Remove partial folders and files of crashed processes; the caller holds a lock."""
    for partial in folder.glob(PARTIAL + "*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
