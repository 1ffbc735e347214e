from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from directalign import config
from directalign.methods.alignprop import AlignProp
from directalign.methods.draft import DRaFT
from directalign.types import Batch
from methods import by_hand
from methods.by_hand import CASES, PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward


def method(family=None, reward=None, rollout=ROLLOUT, **settings) -> AlignProp:
    return AlignProp(
        family or ToyFamily(),
        reward or ToyReward(),
        config.AlignPropConfig.model_validate(settings),
        rollout,
    )


def batch_of_depth(depth: int) -> Batch:
    """A batch whose draw is `depth` of the four steps."""
    return next(
        batch
        for batch in (Batch(step, PROMPTS, seed=7) for step in range(100))
        if method().depth(batch) == depth
    )


def plain(family: ToyFamily, grad_steps: int) -> DRaFT:
    """The same gradient with every activation kept."""
    return DRaFT(family, ToyReward(), config.DRaFTConfig(grad_steps=grad_steps), ROLLOUT)


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_gradient_is_that_of_the_unrolled_chain_cut_at_the_drawn_depth(path, prediction, depth):
    family, batch = ToyFamily(path, prediction), batch_of_depth(depth)
    (found,) = by_hand.gradients(method(family), family, batch)
    sigmas = by_hand.levels(family)
    with torch.no_grad():
        x_t = by_hand.walk(family, by_hand.batch_noise(batch), sigmas[: 5 - depth])
    expected = by_hand.numerical_gradient(
        family,
        lambda: by_hand.absolute_loss(family, by_hand.walk(family, x_t, sigmas[4 - depth :])),
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-7
    )  # the rollout's first step has its coefficients in float32


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_recomputing_changes_nothing(path, prediction, depth):
    family, batch = ToyFamily(path, prediction), batch_of_depth(depth)
    (recomputed,), (kept,) = (
        by_hand.gradients(each, family, batch) for each in (method(family), plain(family, depth))
    )
    assert torch.equal(recomputed, kept)


@pytest.mark.parametrize("max_grad_steps", [None, 1, 3])
def test_the_depth_is_uniform(max_grad_steps):
    alignprop = method(max_grad_steps=max_grad_steps)
    counts = torch.bincount(
        torch.tensor([alignprop.depth(Batch(step, PROMPTS)) for step in range(1200)]), minlength=5
    )
    depths = max_grad_steps or 4
    assert counts[0] == 0 and counts[depths + 1 :].sum() == 0
    expected = 1200 / depths
    assert ((counts[1 : depths + 1] - expected).abs() < 4 * expected**0.5).all()


@pytest.mark.parametrize("depth", [1, 3])
def test_the_first_steps_carry_no_graph_and_only_the_others_run_again(depth):
    family = ToyFamily()
    seen = by_hand.watch_gradients(family)
    (loss,) = method(family).losses(batch_of_depth(depth))
    assert seen == [False] * (4 - depth) + [True] * depth
    loss.value.backward()
    assert len(seen) == 4 + depth
    levels = [float(sigma[0]) for sigma, _ in family.calls]
    assert levels[4:] == levels[4 - depth : 4][::-1]  # backward, from the end of the chain


def kept_for_backward(losses) -> int:
    """How many numbers the graph of a loss holds on to."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        next(iter(losses))
    return sum(sizes)


def test_a_step_more_keeps_its_input_alone():
    family, depths = ToyFamily(), (1, 2, 3, 4)
    recomputed = [
        kept_for_backward(method(family).losses(batch_of_depth(depth))) for depth in depths
    ]
    kept = [
        kept_for_backward(plain(family, depth).losses(batch_of_depth(depth))) for depth in depths
    ]
    assert {deeper - shallower for shallower, deeper in pairwise(recomputed)} == {
        2 * 4 * 4 * 4 + 1 + 1
    }  # x_t and two levels
    assert all(
        deeper - shallower > 2 * (2 * 4 * 4 * 4 + 2 + 2) for shallower, deeper in pairwise(kept)
    )


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_loss_is_what_the_form_maximises(form):
    family, reward, batch = ToyFamily(), ToyReward(), Batch(0, PROMPTS)
    (loss,) = method(family, reward, form=form, control_phrases=WORDS).losses(batch)
    x0 = by_hand.walk(family, by_hand.batch_noise(batch), by_hand.levels(family))
    expected = by_hand.maximised(reward, by_hand.images_of(family, x0), form)
    torch.testing.assert_close(loss.value, -expected.mean(), rtol=1e-6, atol=1e-9)
    assert (
        loss.metrics["reward"] == pytest.approx(float(expected.mean().detach()), rel=1e-6)
        and loss.value.requires_grad
    )
