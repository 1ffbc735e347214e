"""A run as typed, strict YAML, section by section: `run` has the whole, `methods` what each paper adds, `preferring` what they share."""

from __future__ import annotations

from .adherence import Adherence, Detector
from .base import DtypeName, Pair, Positive, Sigma, Size, Strict
from .methods import SRPO, AlignProp, DRaFT, DRTune, FlowBP, FlowGRPO, LeapAlign, Method, Noise, ReFL, Trust
from .model import FamilyName, Lora, Model
from .moves import Branch, ConstantGainMoves, Moves, Ramp, UniformMoves, WindowMoves
from .preferring import Anchor, ControlPhrases, ObjectiveConfig
from .rewards import Aesthetic, Clip, Hpsv3, ImageReward, Member, Mix, Mps, Pixels, Python, Remote, Reward, Siglip, SingleReward, Vlm
from .run import Data, Evaluate, Rollout, Run, Train
from .stopping import Stop
from .tracking import Track, Trackio, Wandb

__all__ = [
    "Adherence",
    "Aesthetic",
    "AlignProp",
    "Anchor",
    "Branch",
    "Clip",
    "ConstantGainMoves",
    "DRTune",
    "DRaFT",
    "Data",
    "Detector",
    "DtypeName",
    "Evaluate",
    "FamilyName",
    "FlowBP",
    "FlowGRPO",
    "Hpsv3",
    "ImageReward",
    "LeapAlign",
    "Lora",
    "Member",
    "Method",
    "Mix",
    "Model",
    "Moves",
    "Mps",
    "Noise",
    "Pair",
    "Pixels",
    "Positive",
    "ObjectiveConfig",
    "Python",
    "Ramp",
    "ReFL",
    "Remote",
    "Reward",
    "Rollout",
    "Run",
    "SRPO",
    "Siglip",
    "Sigma",
    "SingleReward",
    "Size",
    "Stop",
    "Strict",
    "Track",
    "Trackio",
    "Train",
    "Trust",
    "UniformMoves",
    "Vlm",
    "Wandb",
    "WindowMoves",
    "ControlPhrases",
]
