"""Ctrl-C and SIGTERM ask for a stop; the step in hand is finished and a checkpoint is written. A second one ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from ..types import DirectAlignError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DirectAlignError):
    """The run was stopped by a signal after a whole step; `--resume` continues it."""


class StopRequest:
    """Inside this context the first signal only sets `received`; afterwards, and for the second signal, the former handlers act."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._former = {}
