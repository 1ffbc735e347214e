"""Tells ranks when one of them is gone, and why, so that none waits for it forever.

Each rank writes a heartbeat into the store where the processes met, and reads those of the others, in a thread of its own;
a rank that fails leaves its last words there. A collective that lacks a rank may hang inside a library where no exception
reaches it: then the thread itself ends the process, with the reason on one line.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import Store

from ..types import DirectAlignError

BEAT = 1.0
"""Seconds between two heartbeats."""
SILENCE = 35
"""Beats after which a rank counts as gone. Long: a busy machine or a library may hold a thread up for a while."""
SHORT_SILENCE = 3
"""The same once a collective has failed, which is a sign by itself."""
ARRIVAL = 300
"""Seconds in which all ranks must have started."""
GRACE = 10.0
"""Seconds that the process has for ending by itself once a rank is gone."""
ALIVE, LEFT, FAILED = "+", "-", "!"
"""What an entry in the store begins with; last words follow the last."""


@dataclass
class _Entry:
    """What a rank wrote last, and in which of our rounds that was new."""

    text: str = ALIVE
    since: int = 0


class Watch:
    """Starts when all ranks have come; `leave` ends it.

    `store` is a connection of its own: a client that waits for a key holds up all its users. `host` names who keeps it, for
    the case that it is gone. Raises DirectAlignError when a rank does not come.
    """

    def __init__(self, store: Store, rank: int, size: int, host: str, silence: int = SILENCE, grace: float = GRACE) -> None:
        self._store, self._rank, self._host, self._silence, self._grace = store, rank, host, silence, grace
        self._keys = [f"rank-{other}" for other in range(size)]
        self._entries = [_Entry() for _ in range(size)]
        self._round, self._lost, self._over = 0, False, threading.Event()
        self._meet()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")
        self._thread.start()

    def gone(self, silence: int) -> str | None:
        """Which rank is gone and why, None while all are well; a rank counts as gone after `silence` beats without a sign."""
        if self._lost:
            return f"{self._host} is gone: the connection to it is lost"
        others = [(rank, entry) for rank, entry in enumerate(self._entries) if rank != self._rank]
        for rank, entry in others:
            if entry.text.startswith(FAILED):
                words = entry.text.removeprefix(FAILED)
                return words if " is gone: " in words else f"rank {rank} is gone: {words}"
        silent, rank = max(((self._round - entry.since, rank) for rank, entry in others if entry.text.startswith(ALIVE)), default=(0, 0))
        if silent > silence:
            return f"rank {rank} is gone: no sign of life for {silent * BEAT:.0f} s (killed, or its machine is down)"
        return None

    def look_closer(self) -> str | None:
        """As `gone`, after a collective has failed: waits some seconds for the reason to show."""
        for _ in range(2 * SHORT_SILENCE):
            found = self.gone(SHORT_SILENCE)
            if found is not None:
                return found
            time.sleep(BEAT)
        return None

    def leave(self, words: str | None = None) -> None:
        """Stop watching; `words` tell the others why this rank fails, None that its work is done."""
        self._over.set()
        self._thread.join(timeout=self._grace)
        try:
            self._store.set(self._keys[self._rank], LEFT if words is None else FAILED + " ".join(words.split())[:2000])
        except RuntimeError:
            self._lost = True
        if words is not None and self._rank == 0 and not self._lost:
            time.sleep(3 * BEAT)  # it may be the host of the store: the others read the words before it ends

    def _meet(self) -> None:
        self._store.set(self._keys[self._rank], ALIVE)
        try:
            self._store.wait(self._keys, timedelta(seconds=ARRIVAL))
        except RuntimeError as error:
            missing = [key.removeprefix("rank-") for key in self._keys if not self._store.check([key])]
            which = f"rank {', '.join(missing)} of {len(self._keys)} did not come within {ARRIVAL} s"
            raise DirectAlignError(f"{which}: see what the other processes say, and start as many as the launch promised") from error

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._look()
            except RuntimeError:  # torch's word for every trouble with the store
                self._lost = True
            found = self.gone(self._silence)
            if found is not None:
                self._end_unless_over(found)
                return

    def _look(self) -> None:
        self._round += 1
        self._store.set(self._keys[self._rank], f"{ALIVE}{self._round}")
        for entry, value in zip(self._entries, self._store.multi_get(self._keys), strict=True):
            if value.decode() != entry.text:
                entry.text, entry.since = value.decode(), self._round

    def _end_unless_over(self, found: str) -> None:
        if not self._over.wait(self._grace):
            sys.stderr.write(f"directalign: {found}\n")
            sys.stderr.flush()
            os._exit(1)
