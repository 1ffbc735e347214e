"""Alignment methods, one paper per file. A new method is one file and one line in METHODS."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..config import RunConfig
from ..interfaces import SINGLE_PROCESS, Method, Model, ProcessGroup, Reward
from ..rewards.black_box import synchronized

METHODS = {
    "srpo": "srpo:SRPO",
    "refl": "refl:ReFL",
    "draft": "draft:DRaFT",
    "alignprop": "alignprop:AlignProp",
    "drtune": "drtune:DRTune",
    "leapalign": "leapalign:LeapAlign",
    "flowbp": "flowbp:FlowBP",
    "flow_grpo": "flow_grpo:FlowGRPO",
    "python": "python_method:python_method",
}
"""Name in a recipe → "module:class"; imported when used."""


def method_class(name: str) -> Any:
    """The class of a method."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), attribute)


def load_method(
    run: RunConfig, model: Model, reward: Reward, group: ProcessGroup = SINGLE_PROCESS
) -> Method:
    """The method of a run with its model and reward; the processes of `group` share its running
    statistics."""
    method = method_class(run.method.name)(
        model, synchronized(reward, group), run.method, run.rollout
    )
    if hasattr(method, "objective"):  # a method of the user's own may have none
        method.objective.group = group
    return method
