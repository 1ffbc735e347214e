"""A tracker in a thread of its own: whatever it does, or fails to do, neither ends the training nor holds it up, and is said once.

After its first failure, or when it has taken nothing for minutes while more is waiting, it is given up for this process;
`metrics.jsonl` has everything in any case.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any

from .trackers import Pixels, Tracker, Values

PATIENCE = 300.0
"""Seconds without progress after which a tracker is given up."""
LAST_PATIENCE = 90.0
"""Seconds that it has at the end to send what is left."""


class Aside:
    """Hands everything to `tracker` in order and returns at once.

    `name` and `remedy` (how to catch up later, a sentence) are for the one line that `say` is given when the tracker fails.
    """

    def __init__(
        self, tracker: Tracker, name: str, remedy: str, say: Callable[[str], None], patience: float = PATIENCE, last_patience: float = LAST_PATIENCE
    ) -> None:
        self.remembers = tracker.remembers
        self._tracker, self._name, self._remedy, self._say = tracker, name, remedy, say
        self._patience, self._last_patience = patience, last_patience
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._progress = time.monotonic()
        self._lost, self._telling = False, threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def record(self, values: Values, step: int) -> None:
        self._hand(partial(self._tracker.record, values, step))

    def picture(self, pixels: Pixels, step: int) -> None:
        self._hand(partial(self._tracker.picture, pixels, step))

    def summary(self, found: Mapping[str, Any]) -> None:
        self._hand(partial(self._tracker.summary, found))

    def close(self, finished: bool) -> None:
        """Waits until everything is sent, for `last_patience` at most."""
        self._hand(partial(self._tracker.close, finished))
        self._waiting.put(None)
        self._thread.join(0 if self._lost else self._last_patience)
        if self._thread.is_alive():
            self._give_up(f"took nothing more for {self._last_patience:.0f} s at the end")

    def _hand(self, task: Callable[[], None]) -> None:
        if self._lost:
            return
        if self._waiting.empty():
            self._progress = time.monotonic()
        elif time.monotonic() - self._progress > self._patience:
            self._give_up(f"took nothing for {self._patience:.0f} s")
            return
        self._waiting.put(task)

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            if not self._lost:
                self._try(task)
            self._progress = time.monotonic()

    def _try(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # a foreign library's, over a network: any kind
            first_line = next(iter(str(error).splitlines()), "")
            self._give_up(f"failed ({type(error).__name__}: {first_line:.200})")

    def _give_up(self, why: str) -> None:
        with self._telling:
            if self._lost:
                return
            self._lost = True
        self._say(f"warning: {self._name} {why}; the run goes on without it, and metrics.jsonl has everything. {self._remedy}")
