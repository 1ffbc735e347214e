from __future__ import annotations

import pytest
import torch

from directalign import config
from directalign.methods.draft import DRaFT
from directalign.methods.refl import ReFL
from directalign.types import Batch
from methods import by_hand
from methods.by_hand import CASES, PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward


def method(family=None, reward=None, rollout=ROLLOUT, **settings) -> ReFL:
    return ReFL(
        family or ToyFamily(),
        reward or ToyReward(),
        config.ReFLConfig.model_validate(settings),
        rollout,
    )


def batch_of_step(index: int) -> Batch:
    """A batch whose draw is step `index` of the four."""
    return next(
        batch
        for batch in (Batch(step, PROMPTS, seed=7) for step in range(100))
        if method(last_steps=4).trained_step(batch) == index
    )


def reached(family: ToyFamily, batch: Batch, index: int) -> torch.Tensor:
    """The state before step `index`."""
    with torch.no_grad():
        return by_hand.walk(family, by_hand.batch_noise(batch), by_hand.levels(family)[: index + 1])


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("index", range(4))
def test_the_gradient_is_that_of_the_one_step_guess_at_the_drawn_step(path, prediction, index):
    family, batch = ToyFamily(path, prediction), batch_of_step(index)
    (found,) = by_hand.gradients(method(family, last_steps=4), family, batch)
    x_t, sigma = reached(family, batch, index), by_hand.levels(family)[index]
    expected = by_hand.numerical_gradient(
        family, lambda: by_hand.absolute_loss(family, by_hand.split(family, x_t, sigma)[0])
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-7
    )  # the rollout's first step has its coefficients in float32


@pytest.mark.parametrize("last_steps", [1, 2, 4])
def test_the_trained_step_is_uniform_over_the_last_ones(last_steps):
    drawn = torch.tensor(
        [method(last_steps=last_steps).trained_step(Batch(step, PROMPTS)) for step in range(1200)]
    )
    counts = torch.bincount(drawn, minlength=4)
    assert counts[: 4 - last_steps].sum() == 0
    expected = 1200 / last_steps
    assert ((counts[4 - last_steps :] - expected).abs() < 4 * expected**0.5).all()


@pytest.mark.parametrize("index", range(4))
def test_only_the_trained_call_carries_a_graph_and_nothing_comes_after_it(index):
    family = ToyFamily()
    seen = by_hand.watch_gradients(family)
    list(method(family, last_steps=4).losses(batch_of_step(index)))
    assert seen == [False] * index + [True]
    assert {guidance for _, guidance in family.calls} == {1.0}


def test_the_last_step_alone_is_draft_1():
    each = []
    for made in (ReFL, DRaFT):
        family, settings = (
            ToyFamily(),
            config.ReFLConfig(last_steps=1) if made is ReFL else config.DRaFTConfig(grad_steps=1),
        )
        each += by_hand.gradients(
            made(family, ToyReward(), settings, ROLLOUT), family, Batch(0, PROMPTS)
        )
    torch.testing.assert_close(each[0], each[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_loss_is_what_the_form_maximises(form):
    family, reward, batch = ToyFamily(), ToyReward(), Batch(0, PROMPTS)
    refl = method(family, reward, form=form, control_phrases=WORDS)
    (loss,) = refl.losses(batch)
    index = refl.trained_step(batch)
    x0_hat, _ = by_hand.split(family, reached(family, batch, index), by_hand.levels(family)[index])
    expected = by_hand.maximised(reward, by_hand.images_of(family, x0_hat), form)
    torch.testing.assert_close(loss.value, -expected.mean(), rtol=1e-6, atol=1e-9)
    assert loss.levels["reward"] == pytest.approx(expected.tolist(), rel=1e-6) and loss.metrics[
        "reward"
    ] == pytest.approx(float(expected.mean().detach()), rel=1e-6)


def test_the_hinge_lets_go_of_what_is_good_enough():
    rewards = torch.tensor(next(method().losses(Batch(0, PROMPTS))).levels["reward"])
    margin = float(rewards.mean())  # one of the two is above it
    loss = next(method(margin=margin).losses(Batch(0, PROMPTS)))
    assert float(loss.value.detach()) == pytest.approx(
        float((margin - rewards).clamp(min=0).mean())
    )
