"""An append-only JSONL file of rows by model and sample index, safe against interruption.

A line and its newline are written at once, so only the last line can be incomplete; it is removed
when the file is opened. No row is written twice: a resumed process ends with the same bytes as an
uninterrupted one.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DirectAlignError
from .atomic import disk_errors

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
RowKey = tuple[str, int]
"""Model key and sample index."""


class JsonlStore:
    """The rows of a file by `RowKey`; an incomplete last line is removed with a warning.

    Raises: DirectAlignError for a line that is no row; names file and line.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[RowKey, Row] = {}
        for number, line in enumerate(_complete_lines(file), start=1):
            try:
                row = json.loads(line)
                self.rows[str(row["model"]), int(row["index"])] = row
            except (ValueError, KeyError, TypeError) as error:
                raise DirectAlignError(
                    f"{file}:{number}: not a line of this comparison ({error}); remove the file, "
                    "and the same command evaluates again"
                ) from error

    def missing(self, keys: Iterable[RowKey]) -> list[RowKey]:
        """The keys without a row."""
        return [key for key in keys if key not in self.rows]

    def append(self, rows: Iterable[Row]) -> None:
        """Write the rows whose key is new; they are on the disk when this returns."""
        new = {(str(row["model"]), int(row["index"])): row for row in rows}
        new = {key: row for key, row in new.items() if key not in self.rows}
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in new.values())
        text = "".join(f"{line}\n" for line in lines)
        with disk_errors(self.file), self.file.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= new


def _complete_lines(file: Path) -> list[bytes]:
    """The lines that end in a newline; anything after the last newline is cut off the file."""
    if not file.exists():
        return []
    content = file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        logger.warning(
            f"{file}: the last line was incomplete; it is removed and its image evaluated again"
        )
        with file.open("r+b") as stream:
            stream.truncate(len(complete))
    return complete.splitlines()
