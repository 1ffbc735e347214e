"""One paper, one file, one generator of losses; the choice is a literal dict."""

from __future__ import annotations

from typing import Any

from ..config import RunConfig
from ..interfaces import SINGLE_PROCESS, Method, Model, ProcessGroup, Reward
from ..rewards.distributed import synchronized
from .alignprop import AlignProp
from .draft import DRaFT
from .drtune import DRTune
from .flow_grpo import FlowGRPO
from .flowbp import FlowBP
from .leapalign import LeapAlign
from .refl import ReFL
from .srpo import SRPO

METHODS: dict[str, Any] = {
    "srpo": SRPO,
    "refl": ReFL,
    "draft": DRaFT,
    "alignprop": AlignProp,
    "drtune": DRTune,
    "leapalign": LeapAlign,
    "flowbp": FlowBP,
    "flow_grpo": FlowGRPO,
}


def load_method(
    run: RunConfig, model: Model, reward: Reward, together: ProcessGroup = SINGLE_PROCESS
) -> Method:
    """The method that a run names, bound to its model and reward; ranks that train `together` share what it remembers of the reward."""
    method = METHODS[run.method.name](
        model, synchronized(reward, together), run.method, run.rollout
    )
    method.objective.together = together
    return method
