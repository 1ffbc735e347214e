"""Files and folders that are complete or absent: written as `.partial-NAME`, then renamed.

Folders get a manifest of checksums. A crash leaves earlier folders untouched and at most one
`.partial-` folder, which the next run removes. `damage` reports a folder that no longer matches its
manifest (truncated or missing files).
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from ..errors import DirectAlignError
from .text import read_json

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
PARTIAL = ".partial-"
LOCK, LOCK_SECONDS = ".lock", 0.5
"""File of a folder's lock, and how long to wait for it: `is_locked` takes it for a moment."""
AGAIN = "free some, then give the same command again (train: with --resume)"


class InUse(DirectAlignError):
    """Another process holds the lock of a folder."""


def partial_of(target: Path) -> Path:
    """Where all ranks write `target` until it is complete; the caller holds a lock."""
    return target.with_name(PARTIAL + target.name)


@contextmanager
def disk_errors(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Turn a full disk into one DirectAlignError, whichever library raises it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DirectAlignError) or not is_disk_full(error):
            raise
        raise DirectAlignError(f"{path}: no space left on the disk; {remedy}") from error


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Where to write what becomes `file` on success; after an error nothing of it is left."""
    partial = file.with_name(f"{PARTIAL}{os.getpid()}-{file.name}")  # of this process
    try:
        with disk_errors(file):
            yield partial
            _respect_umask(partial)
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`: renamed to `out` on success, removed after an error.

    What a killed process left there is removed. Everything is on the disk before the renaming.

    Raises: DirectAlignError if `out` exists, now or at the end, another process is writing it, or
    the disk is full.
    """
    partial = partial_of(out)
    busy = f"--out {out}: another process is writing it; wait for it, or name another folder"
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        with disk_errors(out):
            partial.mkdir(parents=True, exist_ok=True)
            with _locked(f"folder {out.absolute()}", busy):
                try:
                    require_new(out)
                    for leftover in partial.iterdir():
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                    yield partial
                    flush_tree(partial)
                    require_new(out)
                    partial.rename(out)
                except BaseException:
                    shutil.rmtree(partial)
                    raise
    except BaseException:
        for parent in made:
            with suppress(OSError):  # another process may have put something there
                parent.rmdir()
        raise


@contextmanager
def _locked(key: str, busy: str) -> Iterator[None]:
    """Hold the lock of `key`. Raises DirectAlignError: `busy`."""
    lock = lock_of(key)
    try:
        lock.acquire()
    except Timeout as error:
        raise DirectAlignError(busy) from error
    try:
        yield
    finally:
        lock.release()


def lock_of(key: str) -> FileLock:
    """A lock on this machine for what cannot hold a lock file itself; it ends with the process.

    `acquire` raises filelock.Timeout at once if another process holds it.
    """
    name = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]
    file = Path(tempfile.gettempdir()) / f"directalign-{name}.lock"
    return FileLock(file, timeout=0, mode=0o666, thread_local=False)


def make_folder(out: Path) -> None:
    """Create the folder and its parents. Raises: DirectAlignError."""
    try:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectAlignError(
            f"--out {out} cannot be created: {error.strerror}; name a writable folder"
        ) from error


@contextmanager
def exclusive(out: Path, use: str) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process; a file system without locks: warning.

    Raises: DirectAlignError if another process holds it, which is `use`: "training in it".
    """
    lock = FileLock(out / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUse(
            f"--out {out}: another process is {use}; wait for it, or end it first"
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning(f"{out} cannot be locked ({error}): let no other process use it")
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path, unknown: bool) -> bool:
    """Whether a process holds the folder's lock (`exclusive`) now; `unknown` where the file system
    cannot tell."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return unknown
    lock.release()
    return False


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
    flush_tree(partial)
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)
    flush(target.parent)


class _Entry(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    files: dict[str, _Entry]


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """How a published folder differs from its manifest, None if it does not.

    Checks every `parts`-th file from `part` on.
    """
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    try:
        files = read_json(folder / MANIFEST, "", _Manifest)["files"]
    except DirectAlignError:
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
    """Write a single file, complete or not at all.

    Raises: DirectAlignError if the disk is full.
    """
    with new_file(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space; torch and safetensors wrap the system's error."""
    codes = errno.ENOSPC, errno.EDQUOT
    texts = (os.strerror(code) for code in codes)
    return getattr(error, "errno", None) in codes or any(text in str(error) for text in texts)


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


def flush_tree(folder: Path) -> None:
    """fsync a folder and everything in it; all files get the usual rights."""
    for path in folder.rglob("*"):
        if path.is_file():
            _respect_umask(path)
        flush(path)
    flush(folder)


def _respect_umask(file: Path) -> None:
    """The rights of a new file: safetensors takes those of a private temporary file."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def flush(path: Path) -> None:
    """fsync a file or folder; Windows has this for files that are open for writing only."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
