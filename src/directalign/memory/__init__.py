"""How much memory a run will take and what would make it take less, told from configs: no weight is read, no network asked.

`architecture` finds out what the models are made of, `held` counts what stays, `traces` and `passing` call the networks in
shapes alone for what comes and goes, `phases` puts both together, `changes` estimates changed recipes.
"""

from __future__ import annotations

from .adapters import lora_parameters
from .changes import Remedy, remedies
from .passing import kept_calls
from .phases import PHASES, Estimate, Row, estimate
from .place import Place, a_gpu, binary, this_machine

__all__ = [
    "PHASES",
    "Estimate",
    "Place",
    "Remedy",
    "Row",
    "a_gpu",
    "binary",
    "estimate",
    "kept_calls",
    "lora_parameters",
    "remedies",
    "this_machine",
]
