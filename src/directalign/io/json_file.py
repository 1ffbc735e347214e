"""Read JSON files of an expected shape; errors are one line with the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import DirectAlignError


def read_json(file: Path, remedy: str, shape: Any = dict[str, Any]) -> Any:
    """The content of a file, checked to be of the type `shape`, of which models may have more keys.

    Raises: DirectAlignError for a missing or unreadable file, or another shape; ends in `remedy`.
    """
    try:
        content = file.read_bytes()
        TypeAdapter(shape).validate_json(content, strict=True)
        return json.loads(content)
    except FileNotFoundError as error:
        raise DirectAlignError(f"{file}: no such file; {remedy}") from error
    except (OSError, ValidationError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
        raise DirectAlignError(f"{file}: not readable as JSON ({reason}); {remedy}") from error
