"""A JSONL file that grows line by line and survives being killed: what is in it is done, and what is torn is done again.

A line is written with its newline in one go, so only the last one can be torn; it is dropped when the file is opened, and said. Nothing is
written twice, so a process that goes on leaves the bytes that an undisturbed one leaves.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..types import DirectAlignError

Row = Mapping[str, Any]
Place = tuple[str, int]
"""Key of a model, index of a pair."""
Say = Callable[[str], None]


class Ledger:
    """The rows of a file by model and index; `say` is told of a torn line."""

    def __init__(self, file: Path, say: Say) -> None:
        self.file = file
        self.rows: dict[Place, Row] = {}
        whole = _whole_lines(file, say)
        for number, line in enumerate(whole, start=1):
            row = _row(line, file, number)
            self.rows[str(row["model"]), int(row["index"])] = row

    def missing(self, places: Iterable[Place]) -> list[Place]:
        """Those that have no row yet."""
        return [place for place in places if place not in self.rows]

    def append(self, rows: Iterable[Row]) -> None:
        """Write the rows whose place is still empty, all of them on the disk before this returns."""
        new = {(str(row["model"]), int(row["index"])): row for row in rows}
        new = {place: row for place, row in new.items() if place not in self.rows}
        text = "".join(
            json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in new.values()
        )
        with told_where_full(self.file), self.file.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= new


@contextmanager
def told_where_full(path: Path) -> Iterator[None]:
    """A full disk is one line that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DirectAlignError(
                f"{path}: no space left on the disk; free some, then give the same command: it goes on where it stopped"
            ) from error
        raise


def write_whole(file: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    with told_where_full(file):
        part.write_text(text, encoding="utf-8")
        part.replace(file)


def _whole_lines(file: Path, say: Say) -> list[bytes]:
    """The lines that end in a newline; what follows them is cut off the file."""
    if not file.exists():
        return []
    content = file.read_bytes()
    kept = content[: content.rfind(b"\n") + 1]
    if len(kept) < len(content):
        say(f"{file}: the last line was cut short; it is dropped and its image measured again")
        with file.open("r+b") as torn:
            torn.truncate(len(kept))
    return kept.splitlines()


def _row(line: bytes, file: Path, number: int) -> Row:
    try:
        row = json.loads(line)
        return {**row, "model": row["model"], "index": int(row["index"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(
            f"{file}:{number}: not a line of this comparison ({error}); remove the file, and the same command measures again"
        ) from error
