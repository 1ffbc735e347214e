"""HTTP connections that come to the point: whoever has begun a request sends its headers within seconds, or is cut off.

uvicorn waits for headers for ever, so that a few hundred connections that send one byte now and then would hold all that there are. Bodies
have their own limit (see `security`); answers have none.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .security import MOST_SECONDS, log


class PatientNoMore(H11Protocol):
    """uvicorn's protocol, with a limit on the time from the connection, or from the first byte of a later request, to the end of the headers."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there; the time runs."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some of a request has come, perhaps the rest of its headers."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._limit is None:
            self._limit = self.loop.call_later(MOST_SECONDS, self._cut_off)

    def _stop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _cut_off(self) -> None:
        self._limit = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:  # browsers open connections ahead, and say nothing on some: not worth a line
            log.warning("refused 408 from %s: the headers took longer than %g s", (self.client or ("?",))[0], MOST_SECONDS)
        self.transport.close()
