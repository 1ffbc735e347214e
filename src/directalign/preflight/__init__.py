"""What a run needs and what is wrong with it, before any weight is loaded: checks, a memory estimate, and what would lower it."""

from __future__ import annotations

from .checks import Plan, plan, survey
from .memory import PHASES, Estimate, Place, a_gpu, binary, estimate, this_machine
from .memory_suggestions import Suggestion, suggestions

__all__ = [
    "PHASES",
    "Estimate",
    "Place",
    "Plan",
    "Suggestion",
    "a_gpu",
    "binary",
    "estimate",
    "plan",
    "suggestions",
    "survey",
    "this_machine",
]
