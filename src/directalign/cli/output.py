"""Standard streams that never end a command: a closed pipe or terminal, or a full disk behind one.

What can no longer be written is dropped. The loss is reported on stderr, except for a reader that
closed its pipe (`| head`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class DroppingStream:
    """A text stream whose writes never raise OSError; after the first one it writes to nowhere."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream, which is flushed: an error belongs to the text that caused it."""
        self._attempt(lambda: (self._stream.write(text), self._stream.flush()))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # the rest of the buffer goes there too
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError) and self._name != "stderr":
                with suppress(OSError):
                    sys.stderr.write(
                        f"warning: {self._name} cannot be written ({error.strerror}); output is "
                        "dropped from here on\n"
                    )


def protect_streams() -> None:
    """Put a `DroppingStream` in place of stdout and stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, DroppingStream):
            setattr(sys, name, DroppingStream(stream, name))
