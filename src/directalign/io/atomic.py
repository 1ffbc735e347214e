"""Files and folders that are either whole or not there: written under `.partial-NAME`, sealed by a manifest of checksums, then renamed.

A crash leaves the former folders untouched and at most a `.partial-` one, which the next run sweeps away. A folder that
was damaged later (truncated file, lost file) no longer fits its manifest, and `damage` says how.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PARTIAL = ".partial-"


def partial_of(target: Path) -> Path:
    """Where `target` is written until it is whole."""
    return target.with_name(PARTIAL + target.name)


def sums(folder: Path, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Size and checksum of every file in a folder, or of one `part` of its files in `parts`, by name."""
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())[part::parts]
    }


def publish(target: Path, files: Mapping[str, Any]) -> None:
    """Seal the partial folder of `target` with the `sums` of its files and rename it into place; a former `target` is replaced."""
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
    """What is wrong with a published folder, in words; None when every file fits the manifest, or every one in a `part` of `parts`."""
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
            return f"{name} does not fit its checksum"
    return None


def write_text(file: Path, text: str) -> None:
    """Write a single file, whole or not at all."""
    partial = partial_of(file)
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; torch and safetensors wrap the system's error and keep its words."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def sweep(folder: Path) -> list[str]:
    """Remove what crashed writers left in `folder`; their names."""
    left = [path for path in sorted(folder.glob(PARTIAL + "*")) if path.is_dir()]
    for partial in left:
        shutil.rmtree(partial)
    return [partial.name for partial in left]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Ask the system to put a file or folder on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
