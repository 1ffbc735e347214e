"""One paper, one file, one generator of losses; the choice is a literal dict."""

from __future__ import annotations

from ..config import Run
from ..interfaces import Family, Method, Reward
from .srpo import SRPO


def load_method(run: Run, family: Family, reward: Reward) -> Method:
    """The method that a run names, bound to its model and reward."""
    methods = {"srpo": SRPO}
    return methods[run.method.name](family, reward, run.method, run.rollout)
