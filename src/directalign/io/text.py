"""Read UTF-8 files of the user; errors are one line with file, line and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..types import DirectAlignError


def read_text(path: Path, what: str) -> str:
    """The file's text without a byte-order mark. `what` names the kind of file in errors."""
    if not path.exists():
        raise DirectAlignError(
            f"{path}: no such {what}; check the path (relative to the current folder, {Path.cwd()})"
        )
    if path.is_dir():
        raise DirectAlignError(f"{path}: is a folder, and a {what} is needed")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DirectAlignError(f"{path}: cannot read this {what}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise DirectAlignError(
            f"{path}:{line}: not UTF-8: byte 0x{byte:02x} at offset {error.start}; save the {what} "
            "as UTF-8"
        ) from error


def json_rows(path: Path, what: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number from 1, object) of a JSON-lines file; blank lines are skipped."""
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DirectAlignError(
                f"{path}:{number}: not JSON ({error}); write one object a line, like "
                '{"prompt": "a red star"}'
            ) from error
        if not isinstance(row, dict):
            raise DirectAlignError(
                f"{path}:{number}: {type(row).__name__} instead of an object; write it like "
                '{"prompt": "a red star"}'
            )
        yield number, row
