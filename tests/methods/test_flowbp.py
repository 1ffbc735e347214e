from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.methods.flowbp import FlowBP
from directalign.types import Batch
from methods import by_chain, by_hand
from methods.by_chain import EXACT, float64_from_the_first_noise  # noqa: F401
from methods.by_hand import CASES, PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward

BATCHES = [Batch(step, PROMPTS, seed=7) for step in range(8)]


def method(family=None, reward=None, rollout=ROLLOUT, **settings) -> FlowBP:
    return FlowBP(
        family or ToyFamily(),
        reward or ToyReward(),
        config.FlowBPConfig.model_validate(settings),
        rollout,
    )


def lengths(family: ToyFamily) -> list[float]:
    """How much the answer of each step moves x0 when all inputs stay: by differences, since x0 is
    linear in the answers."""
    sigmas, found = by_hand.levels(family), []
    for moved in range(4):
        ends = []
        for shift in (0.0, 1.0):
            x_t = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
            for index in range(4):
                x_t = by_chain.take(
                    family,
                    x_t,
                    torch.full_like(x_t, shift if index == moved else 0.0),
                    sigmas[index],
                    sigmas[index + 1],
                )
            ends.append(float(x_t))
        found.append(abs(ends[1] - ends[0]))
    return found


def cut_gradient(family: ToyFamily, batch: Batch, kept: dict[int, float]) -> Tensor:
    """Of the loss at the sampled image, through the chain with inputs cut off and the answers of
    `kept` alone, times a number each."""
    x0 = by_chain.walk_cut(family, by_hand.batch_noise(batch), by_hand.levels(family), kept)
    return by_hand.gradient(family, by_hand.absolute_loss(family, x0))


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_the_reward_sees_the_sampled_image_to_the_last_bit(path, prediction):
    family, reward = ToyFamily(path, prediction), ToyReward()
    list(method(family, reward).losses(BATCHES[0]))
    x0 = by_chain.states(family, BATCHES[0])[-1]
    torch.testing.assert_close(
        reward.images[0], by_hand.images_of(family, x0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_all_steps_give_the_gradient_with_every_input_cut_off(path, prediction):
    family = ToyFamily(path, prediction)
    (found,) = by_hand.gradients(method(family, trained_steps=4), family, BATCHES[0])
    torch.testing.assert_close(
        found, cut_gradient(family, BATCHES[0], dict.fromkeys(range(4), 1.0)), **EXACT
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
def test_a_few_steps_stand_for_all_by_their_length(path, prediction, rescale):
    family, batch = ToyFamily(path, prediction), BATCHES[1]
    flowbp = method(family, trained_steps=2, rescale=rescale)
    (found,) = by_hand.gradients(flowbp, family, batch)
    trained, length = flowbp.steps(batch), lengths(family)
    factor = 1 + rescale * (sum(length) / sum(length[index] for index in trained) - 1)
    torch.testing.assert_close(
        found, cut_gradient(family, batch, dict.fromkeys(trained, factor)), **EXACT
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_the_gradient_is_the_difference_quotient_of_the_surrogate(path, prediction):
    """The surrogate's own value, with states and old answers held, for changed weights."""
    family, batch = ToyFamily(path, prediction), BATCHES[2]
    flowbp = method(family, trained_steps=2, rescale=0.0)
    (found,) = by_hand.gradients(flowbp, family, batch)
    path_states, sigmas, trained = (
        by_chain.states(family, batch),
        by_hand.levels(family),
        flowbp.steps(batch),
    )
    with torch.no_grad():
        held = [
            by_chain.answer(family, x_t, sigma)
            for x_t, sigma in zip(path_states[:-1], sigmas[:-1], strict=True)
        ]

    def surrogate() -> Tensor:
        x_t = path_states[0]
        for index in range(4):
            pred = (
                by_chain.answer(family, path_states[index], sigmas[index])
                if index in trained
                else held[index]
            )
            x_t = by_chain.take(family, x_t, pred, sigmas[index], sigmas[index + 1])
        return by_hand.absolute_loss(family, x_t)

    torch.testing.assert_close(
        found, by_hand.numerical_gradient(family, surrogate), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("trained_steps", [1, 2, 3])
def test_the_mean_over_all_uniform_draws_is_proportional_to_all_steps(
    path, prediction, trained_steps, monkeypatch
):
    family = ToyFamily(path, prediction)
    flowbp, whole = (
        method(family, trained_steps=trained_steps, late_bias=0.0, rescale=0.0),
        cut_gradient(family, BATCHES[0], dict.fromkeys(range(4), 1.0)),
    )
    found = []
    for drawn in combinations(range(4), trained_steps):
        monkeypatch.setattr(flowbp, "steps", lambda batch, drawn=drawn: list(drawn))
        found += by_hand.gradients(flowbp, family, BATCHES[0])
    torch.testing.assert_close(torch.stack(found).mean(0), trained_steps / 4 * whole, **EXACT)


@pytest.mark.parametrize("trained_steps", [1, 3])
def test_equally_long_steps_are_stretched_to_the_whole_on_average(trained_steps, monkeypatch):
    """On a flow with an even grid the factor is N / K for every draw."""
    family = ToyFamily()
    flowbp, whole = (
        method(family, trained_steps=trained_steps, late_bias=0.0),
        cut_gradient(family, BATCHES[0], dict.fromkeys(range(4), 1.0)),
    )
    found = []
    for drawn in combinations(range(4), trained_steps):
        monkeypatch.setattr(flowbp, "steps", lambda batch, drawn=drawn: list(drawn))
        found += by_hand.gradients(flowbp, family, BATCHES[0])
    torch.testing.assert_close(torch.stack(found).mean(0), whole, **EXACT)


@pytest.mark.parametrize("trained_steps", [1, 3, 4])
def test_the_rollout_is_without_gradient_and_the_repeated_calls_with(trained_steps):
    family = ToyFamily()
    flowbp = method(family, trained_steps=trained_steps)
    seen = by_hand.watch_gradients(family)
    list(flowbp.losses(BATCHES[0]))
    assert seen == [False] * 4 + [True] * trained_steps
    repeated = [float(sigma[0]) for sigma, _ in family.calls[4:]]
    assert repeated == [by_hand.levels(family)[index] for index in flowbp.steps(BATCHES[0])]
    assert {guidance for _, guidance in family.calls} == {by_hand.GUIDANCE}


def test_steps_are_different_and_late_ones_come_more_often():
    flowbp = method(trained_steps=1, late_bias=2.0)
    counts = torch.bincount(
        torch.tensor([flowbp.steps(Batch(step, PROMPTS))[0] for step in range(1500)]), minlength=4
    ).double()
    expected = 1500 * torch.tensor([1, 4, 9, 16], dtype=torch.float64) / 30
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()
    several = method(trained_steps=3, late_bias=0.0)
    draws = [tuple(several.steps(Batch(step, PROMPTS))) for step in range(200)]
    assert set(draws) == set(combinations(range(4), 3))


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_loss_is_what_the_form_maximises(form):
    family, reward, batch = ToyFamily(), ToyReward(), BATCHES[0]
    (loss,) = method(family, reward, form=form, control_phrases=WORDS, trained_steps=4).losses(
        batch
    )
    reference = (
        float(reward.score(reward.images[0].mean((2, 3)), PROMPTS).mean())
        if form == "anchored"
        else None
    )
    x0 = by_chain.walk_cut(
        family, by_hand.batch_noise(batch), by_hand.levels(family), dict.fromkeys(range(4), 1.0)
    )
    expected = by_hand.maximised(reward, by_hand.images_of(family, x0), form, reference).mean()
    assert loss.metrics["reward"] == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(
        by_hand.gradient(family, loss.value), by_hand.gradient(family, -expected), **EXACT
    )
