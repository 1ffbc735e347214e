"""The learning rate as a function of the step, the optimizer's settings, and the EMA."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from directalign.config import TrainConfig
from directalign.training.optim import (
    EMA,
    AdamW8bit,
    adamw,
    learning_rate,
    trained_parameters,
)
from directalign.types import DirectAlignError


def settings(**given: object) -> TrainConfig:
    return TrainConfig.model_validate({"num_steps": 10, "learning_rate": 2.0, **given})


def test_warm_up_rises_evenly_from_zero_to_the_peak():
    rates = [learning_rate(settings(warmup_steps=3), step) for step in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_linear_and_cosine_start_at_the_peak_and_end_at_zero():
    for kind, middle in (("linear", 1.0), ("cosine", 1.0)):
        chosen = settings(schedule=kind, warmup_steps=2)
        assert learning_rate(chosen, 2) == pytest.approx(2.0)
        assert learning_rate(chosen, 6) == pytest.approx(middle)
        assert learning_rate(chosen, 10) == pytest.approx(0.0, abs=1e-12)
        falling = [learning_rate(chosen, step) for step in range(2, 10)]
        assert all(a > b > 0 for a, b in pairwise(falling))


def test_only_weights_that_ask_for_a_gradient_are_trained():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert list(trained_parameters(layer)) == ["weight"]
    with pytest.raises(DirectAlignError, match=r"model\.lora\.targets"):
        trained_parameters(layer.requires_grad_(False))


def test_trained_weights_are_of_one_dtype():
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    assert {p.dtype for p in trained_parameters(mixed[1]).values()} == {torch.bfloat16}
    with pytest.raises(AssertionError, match="all be float32 or all be bfloat16"):
        trained_parameters(mixed)
    with pytest.raises(AssertionError, match="need adamw8bit"):
        adamw(trained_parameters(mixed[1]), settings())


def test_the_recipe_chooses_the_optimiser():
    weights = trained_parameters(nn.Linear(2, 2))
    assert type(adamw(weights, settings())) is torch.optim.AdamW
    chosen = adamw(
        weights, settings(optimizer="adamw8bit", betas=[0.5, 0.6], weight_decay=0.01), seed=7
    )
    group = chosen.param_groups[0]
    assert isinstance(chosen, AdamW8bit) and chosen.seed == 7
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2.0, (0.5, 0.6), 0.01)


def test_the_average_follows_its_recurrence():
    weight = nn.Parameter(torch.zeros(1))
    average, expected = EMA({"w": weight}, decay=0.3), 0.0
    for update in range(1, 8):
        weight.data.fill_(float(update))
        average.update()
        decay = 0.0 if update == 1 else min(0.3, update / (9 + update))
        expected = decay * expected + (1 - decay) * update
        assert float(average.tensors()["w"]) == pytest.approx(expected)


def test_swapping_the_average_in_is_undone_even_by_an_error():
    weight = nn.Parameter(torch.zeros(2))
    average = EMA({"w": weight}, decay=0.9)
    weight.data.fill_(5.0)
    with pytest.raises(RuntimeError, match="inside"), average.ema_weights():
        assert weight.tolist() == [0.0, 0.0]
        raise RuntimeError("inside")
    assert weight.tolist() == [5.0, 5.0]


def test_a_restored_average_goes_on_as_the_first():
    weight = nn.Parameter(torch.ones(1))
    first = EMA({"w": weight}, decay=0.9)
    first.update()
    second = EMA({"w": weight}, decay=0.9)
    second.tensors()["w"].copy_(first.tensors()["w"])
    second.model.optimization_step = 1
    weight.data.fill_(3.0)
    first.update()
    second.update()
    assert torch.equal(first.tensors()["w"], second.tensors()["w"])
