"""From two scores to a loss."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from directalign.methods.objective_math import (
    absolute_relative,
    anchored_reward,
    discount,
    from_absolute_relative,
    hinge,
    relative_reward,
)

weights = st.floats(-2, 2)


def test_ramps_weigh_each_phrasing_by_sample(scores):
    pos, neg, k = scores
    assert_close(relative_reward(pos, neg, k, 0.5), (1 + k) * pos - 1.5 * neg)
    plain = relative_reward(pos, neg, 0.0, 0.0)
    assert_close(relative_reward(pos + k, neg + k, 0.0, 0.0), plain)  # what both share cancels
    assert relative_reward(pos.float(), neg.float(), k, k).dtype == torch.float32
    assert_close(anchored_reward(pos, neg, k, k, 0.05), plain)
    assert_close(hinge(plain, 1.0, None), -plain)
    assert_close(hinge(plain, -torch.ones(4, dtype=torch.float64), None), plain)


@given(weights, weights, weights, weights)
def test_absolute_and_relative_weights_rewrite_the_reward(k_pos, k_neg, pos, neg):
    mu, nu = absolute_relative(k_pos, k_neg)
    assert_close(from_absolute_relative(mu, nu), (k_pos, k_neg), rtol=0, atol=1e-12)
    one = torch.tensor([1.0], dtype=torch.float64)
    assert_close(
        relative_reward(pos * one, neg * one, k_pos, k_neg),
        mu * (pos + neg) / 2 * one + nu * (pos - neg) * one,
        rtol=0,
        atol=1e-12,
    )


def test_anchor_pulls_as_hard_as_the_relative_term_at_its_tolerance(scores):
    pos, neg, plain = (score.clone().requires_grad_() for score in scores)
    anchored_reward(pos, neg, plain, plain.detach() - 0.05, tolerance=0.05).sum().backward()
    assert_close(pos.grad, torch.ones(4, dtype=torch.float64))
    assert_close(neg.grad, -torch.ones(4, dtype=torch.float64))
    assert_close(plain.grad, -torch.ones(4, dtype=torch.float64))


def test_hinge_stops_paying_at_its_margin():
    reward = torch.tensor([0.2, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
    loss = hinge(reward, 1.0, 0.7)
    assert_close(loss.detach(), torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64))
    assert_close(
        torch.autograd.grad(loss.sum(), reward)[0],
        torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64),
    )


def test_discount_rises_from_zero_to_one():
    position = torch.linspace(0, 1, 11, dtype=torch.float64)
    factor = discount(position, 3.0)
    assert_close(factor[[0, 5, 10]], torch.tensor([0.0, 0.75, 1.0], dtype=torch.float64))
    assert (factor.diff() > 0).all()
