"""The page of a run while it trains: `report.html` and `status.json` from the first moment on.

The page is written again at every measurement and sample grid, and at steps in between so rarely
that it costs at most 2 % of the time. A page that cannot be written never ends a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..report import status, write_page
from ..report.read import is_run
from ..types import SAVED, DirectAlignError
from .loop import Interrupted
from .trackers import Pixels, Values

logger = logging.getLogger(__name__)
LEAST_SECONDS, COST_FACTOR = 15.0, 50.0
"""Between two pages: at least so many seconds, and so many times what the last one took."""
MEASUREMENT = "evaluate/"
"""Prefix of the values of a measurement."""


class LivePage:
    """A tracker that writes the page; as a context, it records how the run ends.

    `processes`: how many train together.
    """

    has_history = True

    def __init__(self, out: Path, processes: int) -> None:
        self.out, self.processes = out, processes
        self._due = 0.0
        self._has_started = self._has_warned = False

    def __enter__(self) -> LivePage:
        return self

    def start(self) -> None:
        """Record that the run goes on; before that, what a folder holds is not touched."""
        self._has_started = True
        self._record(status.RUNNING)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._has_started:
            return
        if error is None:
            self._record(status.FINISHED)
        elif isinstance(error, (Interrupted, KeyboardInterrupt)):
            self._record(status.STOPPED)
        else:
            known = isinstance(error, DirectAlignError)
            line = str(error) if known else f"{type(error).__name__}: {error}"
            line = "; ".join(filter(None, (line, getattr(error, SAVED, ""))))
            self._record(status.FAILED, " ".join(line.split()))

    def log_values(self, values: Values, step: int) -> None:
        """Write the page if these are of a measurement, or the last one is old enough."""
        measured = any(name.startswith(MEASUREMENT) for name in values)
        if measured or time.monotonic() >= self._due:
            self.write()

    def log_image(self, pixels: Pixels, step: int) -> None:
        """Let the next values write the page."""
        self._due = 0.0

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Nothing: the page is written when the run has ended."""

    def close(self, finished: bool) -> None:
        """Nothing: see `log_summary`."""

    def write(self) -> None:
        """Write the page; a failure is one warning."""
        if not is_run(self.out):  # before run.yaml is written
            return
        start = time.monotonic()
        try:
            write_page(self.out)
        except Exception as error:
            self._warn(error)
        end = time.monotonic()
        self._due = end + max(LEAST_SECONDS, COST_FACTOR * (end - start))

    def _record(self, state: str, reason: str = "") -> None:
        try:
            status.write_status(self.out, state, self.processes, reason)
        except Exception as error:
            self._warn(error)
        self.write()

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning(f"the page of the run cannot be written ({reason}); training continues")
        self._has_warned = True
