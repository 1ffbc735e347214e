"""What every method must do, on a model and a reward of a few numbers in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from directalign.config import MethodConfig
from directalign.methods import METHODS, method_class
from directalign.types import Batch, DirectAlignError
from methods.by_hand import PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward

OWN = [name for name in METHODS if name != "python"]
DIFFERENTIATING = [name for name in OWN if name != "flow_grpo"]


def method(name: str, reward: ToyReward | None = None, **settings: Any) -> Any:
    config = TypeAdapter(MethodConfig).validate_python({"name": name, **settings})
    return method_class(name)(ToyFamily(), reward or ToyReward(), config, ROLLOUT)


def values(made: Any, step: int) -> list[torch.Tensor]:
    return [loss.value for loss in made.losses(Batch(step, PROMPTS, seed=1))]


@pytest.mark.parametrize("form", ["relative", "anchored"])
@pytest.mark.parametrize("name", OWN)
def test_a_reward_that_ignores_the_prompt_has_no_relative_form(name: str, form: str) -> None:
    with pytest.raises(DirectAlignError, match=r"method\.form"):
        method(name, ToyReward(reads_prompt=False), form=form, control_phrases=WORDS)


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_a_black_box_is_refused_with_the_alternative(name: str) -> None:
    with pytest.raises(
        DirectAlignError, match=rf"method\.name {name} needs its gradient.*flow_grpo"
    ):
        method(name, ToyReward(differentiable=False), form="absolute")


@pytest.mark.parametrize("name", OWN)
def test_draws_depend_on_seed_and_step_alone(name: str) -> None:
    first, again = (values(method(name, form="absolute"), 3) for _ in range(2))
    assert len(first) == len(again) > 0
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("name", OWN)
def test_the_anchor_survives_a_resume(name: str) -> None:
    settings = {
        "form": "anchored",
        "control_phrases": WORDS,
        "anchor": {"reference_updates": 2},
    }
    made, resumed = method(name, **settings), method(name, **settings)
    for step in range(2):
        values(made, step)
    resumed.load_state_dict(made.state_dict())
    for ours, theirs in zip(values(resumed, 2), values(made, 2), strict=True):
        assert torch.equal(ours, theirs)
