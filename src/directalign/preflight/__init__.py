"""Checks of a run, its memory estimate and how to lower it, before any weight is loaded."""

from .checks import Plan, plan, survey
from .cost import BETWEEN, PCIE, WITHIN, Cost
from .files import ModelFiles
from .lower_memory import Suggestion, suggestions
from .memory import PHASES, Estimate, Place, a_gpu, binary, estimate, this_machine

__all__ = [
    "BETWEEN",
    "PCIE",
    "PHASES",
    "WITHIN",
    "Cost",
    "Estimate",
    "ModelFiles",
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
