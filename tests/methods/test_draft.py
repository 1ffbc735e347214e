from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from directalign import config
from directalign.diffusion.rng import FRESH_NOISE, draw_noise, update_generator
from directalign.methods.draft import DRaFT
from directalign.types import Batch
from methods import by_hand
from methods.by_hand import CASES, PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward

ONE_STEP = config.RolloutConfig(num_inference_steps=1, embedded_guidance=by_hand.GUIDANCE)


def method(family=None, reward=None, rollout=ROLLOUT, **settings) -> DRaFT:
    return DRaFT(
        family or ToyFamily(),
        reward or ToyReward(),
        config.DRaFTConfig.model_validate(settings),
        rollout,
    )


def sampled(family: ToyFamily, batch: Batch, until: int = 4) -> torch.Tensor:
    """The state after `until` steps."""
    with torch.no_grad():
        return by_hand.walk(family, by_hand.batch_noise(batch), by_hand.levels(family)[: until + 1])


def fresh(batch: Batch, index: int) -> torch.Tensor:
    return draw_noise((2, 4, 4, 4), update_generator(batch, FRESH_NOISE, index)).double()


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("grad_steps", [1, 2, 4])
def test_the_gradient_is_that_of_the_last_steps_unrolled(path, prediction, grad_steps):
    family, batch = ToyFamily(path, prediction), Batch(1, PROMPTS, seed=7)
    (found,) = by_hand.gradients(method(family, grad_steps=grad_steps), family, batch)
    x_t, rest = sampled(family, batch, 4 - grad_steps), by_hand.levels(family)[4 - grad_steps :]
    expected = by_hand.numerical_gradient(
        family, lambda: by_hand.absolute_loss(family, by_hand.walk(family, x_t, rest))
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-7
    )  # the rollout's first step has its coefficients in float32


@pytest.mark.parametrize("grad_steps", [1, 3])
def test_the_first_steps_carry_no_graph(grad_steps):
    family = ToyFamily()
    seen = by_hand.watch_gradients(family)
    list(method(family, grad_steps=grad_steps).losses(Batch(0, PROMPTS)))
    assert seen == [False] * (4 - grad_steps) + [True] * grad_steps


@pytest.mark.parametrize("lv_samples", [1, 3])
def test_the_first_of_the_noisings_is_the_sample_itself(lv_samples):
    family, batch = ToyFamily(), Batch(0, PROMPTS)
    losses = list(method(family, lv_samples=lv_samples).losses(batch))
    (alone,) = method(family).losses(batch)
    assert [loss.branch for loss in losses] == ["sampled"] + ["noised_anew"] * (lv_samples - 1)
    assert torch.equal(losses[0].value, alone.value / lv_samples)
    torch.testing.assert_close(
        by_hand.gradient(family, losses[0].value) * lv_samples,
        by_hand.gradient(family, alone.value),
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_the_others_denoise_the_sample_from_the_last_level_again(path, prediction):
    family, batch = ToyFamily(path, prediction), Batch(1, PROMPTS, seed=7)
    found = by_hand.gradients(method(family, lv_samples=3), family, batch)
    x0, sigma = sampled(family, batch), by_hand.levels(family)[-2]
    alpha = 1 - sigma if path == "flow" else (1 - sigma**2) ** 0.5
    for index in (1, 2):
        x_t = alpha * x0 + sigma * fresh(batch, index)
        expected = by_hand.numerical_gradient(
            family,
            lambda x_t=x_t: by_hand.absolute_loss(family, by_hand.split(family, x_t, sigma)[0]),
        )
        torch.testing.assert_close(found[index], expected / 3, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found[1], found[2])


def test_the_losses_come_one_by_one():
    family = ToyFamily()
    seen = by_hand.watch_gradients(family)
    for count, loss in enumerate(method(family, lv_samples=3).losses(Batch(0, PROMPTS)), start=1):
        assert seen == [False] * 3 + [True] * count
        loss.value.backward()
        with pytest.raises(
            RuntimeError, match="second time"
        ):  # each has a graph of its own, gone once it was used
            loss.value.backward()


def test_on_one_step_from_pure_noise_each_noising_is_a_draw_of_k_1():
    """alpha is 0 there, so that nothing of the sample is left: loss i is K = 1 on another initial
    noise, to the digit."""
    family, batch = ToyFamily(), Batch(0, PROMPTS)
    found = by_hand.gradients(method(family, rollout=ONE_STEP, lv_samples=4), family, batch)
    for index, noise in enumerate(
        [by_hand.batch_noise(batch), *(fresh(batch, index) for index in (1, 2, 3))]
    ):
        expected = by_hand.gradient(
            family, by_hand.absolute_loss(family, by_hand.walk(family, noise, [1.0, 0.0]))
        )
        torch.testing.assert_close(4 * found[index], expected, rtol=1e-10, atol=1e-14)


def test_there_lv_equals_k_1_in_expectation_at_a_lower_variance():
    family, lv_samples, count = ToyFamily(), 4, 250
    each = {n: method(family, rollout=ONE_STEP, lv_samples=n) for n in (1, lv_samples)}
    draws = {
        n: torch.stack(
            [
                sum(by_hand.gradients(each[n], family, Batch(step, PROMPTS, seed=n)))
                for step in range(count)
            ]
        )
        for n in each
    }
    (mean, variance), (lv_mean, lv_variance) = (
        (found.mean(0), found.var(0)) for found in draws.values()
    )
    moving = variance > 1e-20  # what does not depend on the noise is equal without statistics
    torch.testing.assert_close(lv_mean[~moving], mean[~moving])
    assert ((lv_mean - mean).abs() < 4 * ((variance + lv_variance) / count).sqrt())[moving].all()
    assert float((lv_variance[moving] / variance[moving]).mean()) == pytest.approx(
        1 / lv_samples, rel=0.15
    )


def test_given_the_sample_a_noising_has_the_expectation_of_the_last_step_over_all_noise():
    """On any rollout. The expectation by Gauss-Hermite quadrature over the four channels: the toy
    network acts pixel by pixel."""
    family, batch = ToyFamily(), Batch(0, PROMPTS)
    family.to_rgb = (
        family.to_rgb / 5
    )  # keeps images clear of the clamp, so that quadrature converges fast
    draws = 400 * torch.stack(by_hand.gradients(method(family, lv_samples=400), family, batch)[1:])

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(8))
    grid = torch.tensor(list(product(nodes.tolist(), repeat=4))).double()  # (nodes, 4)
    weight = torch.tensor(list(product(weights.tolist(), repeat=4))).double().prod(1)
    x0, sigma = sampled(family, batch).flatten(2), by_hand.levels(family)[-2]
    x_t = (1 - sigma) * x0[..., None] + sigma * grid.T[None, :, None]  # (2, 4, pixels, nodes)
    x0_hat, _ = by_hand.split(family, x_t, sigma)
    mean_x0_hat = (x0_hat * weight / weight.sum()).sum(
        -1, keepdim=True
    )  # the reward is linear in it
    expected = by_hand.gradient(family, by_hand.absolute_loss(family, mean_x0_hat))
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 4 * error + 1e-9).all()
    assert (error < 0.2 * expected.abs().max()).all()


def test_more_noisings_of_more_steps_are_refused():
    with pytest.raises(ValueError, match="grad_steps: 1"):
        config.DRaFTConfig(grad_steps=2, lv_samples=2)


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_loss_is_what_the_form_maximises(form):
    family, reward, batch = ToyFamily(), ToyReward(), Batch(0, PROMPTS)
    losses = list(
        method(family, reward, form=form, control_phrases=WORDS, lv_samples=2).losses(batch)
    )
    expected = by_hand.maximised(reward, by_hand.images_of(family, sampled(family, batch)), form)
    torch.testing.assert_close(losses[0].value, -expected.mean() / 2, rtol=1e-6, atol=1e-9)
    assert all(loss.value.requires_grad for loss in losses)
    assert sum(float(loss.value.detach()) for loss in losses) == pytest.approx(
        -sum(loss.metrics["reward"] for loss in losses) / 2
    )
