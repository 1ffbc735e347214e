"""A run as typed, strict YAML, section by section: `run` has the whole, `methods` what each paper adds, `preferring` what they share."""

from __future__ import annotations

from .base import DtypeName, Pair, Positive, Sigma, Size, Strict
from .methods import SRPO, AlignProp, DRaFT, DRTune, FlowBP, FlowGRPO, LeapAlign, Method, Noise, ReFL
from .model import FamilyName, Lora, Model
from .moves import Branch, ConstantGainMoves, Moves, Ramp, UniformMoves, WindowMoves
from .preferring import Anchor, Preferring, Words
from .run import Data, Evaluate, Reward, Rollout, Run, Train

__all__ = [
    "AlignProp",
    "Anchor",
    "Branch",
    "ConstantGainMoves",
    "DRTune",
    "DRaFT",
    "Data",
    "DtypeName",
    "Evaluate",
    "FamilyName",
    "FlowBP",
    "FlowGRPO",
    "LeapAlign",
    "Lora",
    "Method",
    "Model",
    "Moves",
    "Noise",
    "Pair",
    "Positive",
    "Preferring",
    "Ramp",
    "ReFL",
    "Reward",
    "Rollout",
    "Run",
    "SRPO",
    "Sigma",
    "Size",
    "Strict",
    "Train",
    "UniformMoves",
    "WindowMoves",
    "Words",
]
