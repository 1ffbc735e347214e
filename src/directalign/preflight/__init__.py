"""Checks of a run, its memory estimate and how to lower it, before any weight is loaded."""

from .checks import Plan, plan, survey
from .memory import (
    PHASES,
    Estimate,
    Place,
    Suggestion,
    a_gpu,
    binary,
    estimate,
    suggestions,
    this_machine,
)

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
