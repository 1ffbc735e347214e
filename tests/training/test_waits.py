"""How often an update waits for its device: the meta device stands in for a GPU.

An operation that reads numbers of a meta tensor gets ones, and is counted, as is a blocking copy of
numbers to it; one whose result's shape depends on a meta tensor's numbers fails.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from directalign.rewards.mixture import MixReward
from directalign.training.distributed import TorchProcessGroup
from directalign.training.step import NFECounter, TrainStep
from directalign.types import Batch
from methods.by_hand import METHODS, PHRASES, PROMPTS, make
from methods.test_objective import mix
from methods.toy import ToyFamily, ToyReward

aten: Any = torch.ops.aten
NUM_UPDATES = 3
ABSOLUTE = {"form": "absolute"}
ANCHORED = {"form": "anchored", "control_phrases": PHRASES}
KEPT = ANCHORED | {"kl_beta": 0.5, "kl_to": "base_with_phrases", "keep_every": 2}
NORMALIZED = {"gradient_normalization": True}
CASES: dict[str, tuple[str, dict[str, Any], MixReward | None]] = {
    **{name: (name, ABSOLUTE, None) for name in METHODS},
    "dpo": ("dpo", {}, None),
    "prompt distillation": ("prompt_distillation", {"control_phrases": PHRASES}, None),
    "relative": ("srpo", {"form": "relative", "control_phrases": PHRASES}, None),
    "anchored": ("srpo", {**ANCHORED, "branches": "denoise"}, None),
    "kept": ("refl", KEPT, None),
    "mixture": ("srpo", ABSOLUTE, mix(({}, ToyReward()), ({}, ToyReward()), **NORMALIZED)),
    "lagrange": ("flowbp", {**ABSOLUTE, "variant": "lagrange"}, None),
}
NOT_REDUCED = {"flow_grpo": 1}
"""Its warning where all samples of a prompt have one reward is given while the samples are made."""


class Waits(TorchDispatchMode):
    """Counts the times that the host reads numbers of meta tensors, or waits to write some."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            self.count += 1
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and device is not None:
            if args[0].is_meta and device.type == "cpu":
                self.count += 1
                return torch.ones(args[0].shape, dtype=dtype or args[0].dtype)
            comes = args[0].device.type == "cpu" and device.type == "meta"
            self.count += comes and not kwargs.get("non_blocking")
        return func(*args, **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_an_update_waits_for_the_device_once(case):
    name, settings, reward = CASES[case]
    family = ToyFamily()
    family.denoiser.to("meta")
    family.to_rgb = family.to_rgb.to("meta")
    method = make(name, family, reward, **settings)
    weights = list(family.denoiser.parameters())
    group, counter = TorchProcessGroup(), NFECounter(family.denoiser)
    method.objective.group = group
    step = TrainStep(method, weights, torch.optim.AdamW(weights), 1.0, group, counter)
    images = {}
    if name == "dpo":
        both = torch.zeros(2, 2, 3, 4, 4, device="meta")
        images = {"images": both[0], "rejected": both[1]}
    if case == "kept":
        images = {"kept": (False, True)}
    for update in range(NUM_UPDATES):
        with Waits() as waits:
            record = step(update + 1, [Batch(update, PROMPTS, **images)])
        assert record["nfe"]["backward"] > 0
        assert waits.count == 1 + NOT_REDUCED.get(name, 0)
