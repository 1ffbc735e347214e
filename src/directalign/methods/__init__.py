"""Alignment methods, one paper per file. A new method is one file and one line in METHODS."""

from importlib import import_module
from typing import Any

from ..config import PythonMethodConfig, RolloutConfig, RunConfig
from ..interfaces import SINGLE_PROCESS, Method, Model, ProcessGroup, Reward
from ..io.user_code import load_object
from ..rewards.black_box import synchronized
from ..rewards.common import BaseReward
from ..types import DirectAlignError

METHODS = {
    "srpo": "srpo:SRPO",
    "prompt_distillation": "prompt_distillation:PromptDistillation",
    "refl": "refl:ReFL",
    "draft": "draft:DRaFT",
    "alignprop": "alignprop:AlignProp",
    "drtune": "drtune:DRTune",
    "leapalign": "leapalign:LeapAlign",
    "flowbp": "flowbp:FlowBP",
    "flow_grpo": "flow_grpo:FlowGRPO",
    "raft": "raft:RAFT",
    "diffusion_nft": "diffusion_nft:DiffusionNFT",
    "awm": "awm:AWM",
    "dpo": "dpo:DPO",
    "python": ":python_method",
}
"""Name in a recipe → "module:class"; imported when used."""


def method_class(name: str) -> Any:
    """The class of a method."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(f".{module}" if module else __name__, __name__), attribute)


def load_method(
    run: RunConfig, model: Model, reward: Reward, group: ProcessGroup = SINGLE_PROCESS
) -> Method:
    """The method of a run; the processes of `group` share its running statistics."""
    if isinstance(reward, BaseReward):
        reward.check_model(model)
    reward = synchronized(reward, group)
    method = method_class(run.method.name)(model, reward, run.method, run.rollout)
    if hasattr(method, "objective"):  # a method of the user's own may have none
        method.objective.group = group
    return method


def python_method(
    model: Model, reward: Reward, settings: PythonMethodConfig, rollout: RolloutConfig
) -> Method:
    """An instance of the user's class `method.path`; see `interfaces.Method`.

    Raises DirectAlignError if it cannot be constructed or is no method.
    """
    key = f"method.path: {settings.path}"
    made = load_object(settings.path, "method.path", "class")
    try:
        method = made(model, reward, settings, rollout, **settings.args)
    except (TypeError, AttributeError) as error:
        raise DirectAlignError(
            f"{key} cannot be constructed with (model, reward, settings, rollout) and "
            f"method.args {settings.args} ({error}); correct the class"
        ) from error
    for name in ("losses", "state_dict", "load_state_dict"):
        if not callable(getattr(method, name, None)):
            raise DirectAlignError(f"{key} has no method {name}(); see interfaces.Method")
    return method
