from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.config.load import load_run
from directalign.methods.leapalign import LeapAlign, similarity_weight
from directalign.preflight.checks import check_method
from directalign.types import Batch, DirectAlignError
from methods import by_chain, by_hand
from methods.by_chain import EXACT, float64_from_the_first_noise  # noqa: F401
from methods.by_hand import CASES, PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward

BATCHES = [Batch(step, PROMPTS, seed=7) for step in range(60)]
PAIRS = list(combinations(range(4), 2))
TWO_STEPS = config.RolloutConfig(num_inference_steps=2, embedded_guidance=by_hand.GUIDANCE)


def method(family=None, reward=None, rollout=ROLLOUT, **settings) -> LeapAlign:
    return LeapAlign(
        family or ToyFamily(),
        reward or ToyReward(),
        config.LeapAlignConfig.model_validate(settings),
        rollout,
    )


def batch_of_steps(k: int, j: int) -> Batch:
    """A batch whose draw is these two of the four steps."""
    return next(batch for batch in BATCHES if method().steps(batch) == (k, j))


def leaps(family: ToyFamily, batch: Batch, k: int, j: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_j and x0 of the path, and where one leap from x_k and one from x_j land)."""
    states, sigmas = by_chain.states(family, batch), by_hand.levels(family)
    to_j = by_chain.take(
        family, states[k], by_chain.answer(family, states[k], sigmas[k]), sigmas[k], sigmas[j]
    )
    to_0 = by_chain.take(
        family, states[j], by_chain.answer(family, states[j], sigmas[j]), sigmas[j], 0.0
    )
    return states[j], states[-1], to_j, to_0


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize(("k", "j"), PAIRS)
def test_the_reward_sees_the_image_of_the_plain_rollout(path, prediction, k, j):
    family, reward, batch = ToyFamily(path, prediction), ToyReward(), batch_of_steps(k, j)
    list(method(family, reward).losses(batch))
    x0 = by_chain.states(family, batch)[-1]
    torch.testing.assert_close(
        reward.images[0], by_hand.images_of(family, x0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_with_the_nested_term_whole_a_path_of_two_steps_has_its_plain_gradient(path, prediction):
    family, batch = ToyFamily(path, prediction), BATCHES[0]
    (found,) = by_hand.gradients(
        method(family, rollout=TWO_STEPS, nested_scale=1.0, similarity_floor=None), family, batch
    )
    x0 = by_hand.walk(family, by_hand.batch_noise(batch), by_hand.levels(family, 2))
    torch.testing.assert_close(
        found, by_hand.gradient(family, by_hand.absolute_loss(family, x0)), **EXACT
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_without_the_nested_term_a_path_of_two_steps_has_every_input_cut_off(path, prediction):
    family, batch = ToyFamily(path, prediction), BATCHES[0]
    (found,) = by_hand.gradients(
        method(family, rollout=TWO_STEPS, nested_scale=0.0, similarity_floor=None), family, batch
    )
    x0 = by_chain.walk_cut(
        family, by_hand.batch_noise(batch), by_hand.levels(family, 2), {0: 1.0, 1: 1.0}
    )
    torch.testing.assert_close(
        found, by_hand.gradient(family, by_hand.absolute_loss(family, x0)), **EXACT
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize(("k", "j"), PAIRS)
@pytest.mark.parametrize("nested_scale", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_difference_quotient_of_the_pinned_leaps(
    path, prediction, k, j, nested_scale
):
    """Both leaps move with the weights from where the path stood; the second call sees
    `nested_scale` of what the first moved."""
    family, batch = ToyFamily(path, prediction), batch_of_steps(k, j)
    (found,) = by_hand.gradients(
        method(family, nested_scale=nested_scale, similarity_floor=None), family, batch
    )
    states, sigmas = by_chain.states(family, batch), by_hand.levels(family)
    with torch.no_grad():
        x_j, x0, held_j, held_0 = leaps(family, batch, k, j)

    def surrogate() -> Tensor:
        moved = (
            by_chain.take(
                family,
                states[k],
                by_chain.answer(family, states[k], sigmas[k]),
                sigmas[k],
                sigmas[j],
            )
            - held_j
        )
        pred = by_chain.answer(family, x_j + nested_scale * moved, sigmas[j])
        return by_hand.absolute_loss(
            family, x0 + by_chain.take(family, x_j + moved, pred, sigmas[j], 0.0) - held_0
        )

    torch.testing.assert_close(
        found, by_hand.numerical_gradient(family, surrogate), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_a_sample_counts_by_how_close_its_leaps_came_to_the_path(path, prediction, floor):
    family, reward, batch = ToyFamily(path, prediction), ToyReward(), batch_of_steps(0, 2)
    (loss,) = method(family, reward, similarity_floor=floor).losses(batch)
    with torch.no_grad():
        x_j, x0, to_j, to_0 = leaps(family, batch, 0, 2)
    near = [
        [max(float(one.abs().mean()), floor) for one in leap - landing]
        for leap, landing in ((to_j, x_j), (to_0, x0))
    ]
    weight = torch.tensor(
        [1 / (to_j + to_0) for to_j, to_0 in zip(*near, strict=True)], dtype=torch.float64
    )
    with torch.no_grad():
        rewards = reward.score(by_hand.images_of(family, x0).mean((2, 3)), PROMPTS)
    assert float(loss.value.detach()) == pytest.approx(-float((weight * rewards).mean()))
    assert loss.metrics["leap_weight"] == pytest.approx(float(weight.mean()))
    assert loss.metrics["distance_j"] == pytest.approx(float((to_j - x_j).abs().mean()))


def test_leaps_that_stay_on_the_path_count_alike():
    """Two neighbouring last steps leap as the sampler steps: no distance, and the weight is its
    largest."""
    (loss,) = method().losses(batch_of_steps(2, 3))
    assert loss.metrics["distance_j"] < 1e-12 and loss.metrics["distance_0"] < 1e-12
    assert loss.metrics["leap_weight"] == pytest.approx(1 / 0.2)
    assert torch.equal(similarity_weight(torch.rand(3), torch.rand(3), None), torch.ones(3))


@pytest.mark.parametrize(("k", "j"), PAIRS)
def test_the_two_trained_calls_are_calls_of_the_rollout(k, j):
    family = ToyFamily()
    seen = by_hand.watch_gradients(family)
    list(method(family).losses(batch_of_steps(k, j)))
    assert seen == [index in (k, j) for index in range(4)]
    assert [float(sigma[0]) for sigma, _ in family.calls] == by_hand.levels(family)[:-1]
    assert {guidance for _, guidance in family.calls} == {by_hand.GUIDANCE}


def test_all_pairs_of_steps_are_drawn_alike():
    counts = Counter(method().steps(Batch(step, PROMPTS)) for step in range(1200))
    assert set(counts) == set(PAIRS)
    assert all(abs(count - 200) < 4 * 200**0.5 for count in counts.values())


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_loss_is_what_the_form_maximises(form):
    family, reward, batch = ToyFamily(), ToyReward(), BATCHES[0]
    leapalign = method(
        family,
        reward,
        TWO_STEPS,
        form=form,
        control_phrases=WORDS,
        nested_scale=1.0,
        similarity_floor=None,
    )
    (loss,) = leapalign.losses(batch)
    reference = (
        float(reward.score(reward.images[0].mean((2, 3)), PROMPTS).mean())
        if form == "anchored"
        else None
    )
    x0 = by_hand.walk(family, by_hand.batch_noise(batch), by_hand.levels(family, 2))
    expected = by_hand.maximised(reward, by_hand.images_of(family, x0), form, reference).mean()
    assert loss.metrics["reward"] == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(
        by_hand.gradient(family, loss.value), by_hand.gradient(family, -expected), **EXACT
    )


def test_one_step_leaves_nothing_to_leap_from():
    with pytest.raises(DirectAlignError, match=r"rollout\.num_inference_steps 1.*at least 2"):
        method(rollout=config.RolloutConfig(num_inference_steps=1))
    with pytest.raises(DirectAlignError, match="leaps from two steps"):
        check_method(load_run("world_leapalign", ["rollout.num_inference_steps=1"]))
