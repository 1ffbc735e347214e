"""A run as typed, strict YAML, section by section: `run` has the whole, `methods` what each paper adds, `preferring` what they share."""

from __future__ import annotations

from .base import Pair, Positive, Sigma, Strict
from .methods import SRPO, AlignProp, DRaFT, DRTune, FlowBP, FlowGRPO, LeapAlign, Method, Noise, ReFL
from .moves import Branch, ConstantGainMoves, Moves, Ramp, UniformMoves, WindowMoves
from .preferring import Anchor, Preferring, Words
from .run import Data, Evaluate, Lora, Model, Reward, Rollout, Run, Train

__all__ = [
    "AlignProp",
    "Anchor",
    "Branch",
    "ConstantGainMoves",
    "DRTune",
    "DRaFT",
    "Data",
    "Evaluate",
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
    "Strict",
    "Train",
    "UniformMoves",
    "WindowMoves",
    "Words",
]
