"""Training: the loop a newcomer can read (`loop`, `step`), and around it what keeps a run whole (`checkpoint`, `log`, `folder`)."""

from __future__ import annotations

from .assemble import run
from .interrupt import Interrupted

__all__ = ["Interrupted", "run"]
