from __future__ import annotations

from collections import Counter

import pytest
import torch

from directalign import config
from directalign.config.load import load_run
from directalign.methods.drtune import DRTune
from directalign.methods.flowbp import FlowBP
from directalign.preflight.checks import check_method
from directalign.types import Batch, DirectAlignError
from methods import by_chain, by_hand
from methods.by_chain import EXACT, float64_from_the_first_noise  # noqa: F401
from methods.by_hand import CASES, PROMPTS, ROLLOUT, WORDS
from methods.toy import ToyFamily, ToyReward

BATCHES = [Batch(step, PROMPTS, seed=7) for step in range(12)]


def method(family=None, reward=None, rollout=ROLLOUT, **settings) -> DRTune:
    return DRTune(
        family or ToyFamily(),
        reward or ToyReward(),
        config.DRTuneConfig.model_validate(settings),
        rollout,
    )


def way_to_the_guess(family: ToyFamily, stop: int) -> list[float]:
    return [*by_hand.levels(family)[: stop + 1], 0.0]


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("batch", BATCHES[:4])
def test_the_reward_sees_the_one_step_guess_of_the_plain_rollout(path, prediction, batch):
    family, reward = ToyFamily(path, prediction), ToyReward()
    drtune = method(family, reward, early_stop=3)
    (loss,) = drtune.losses(batch)
    stop, _ = drtune.steps(batch)
    with torch.no_grad():
        x0_hat = by_hand.walk(family, by_hand.batch_noise(batch), way_to_the_guess(family, stop))
    torch.testing.assert_close(
        reward.images[0], by_hand.images_of(family, x0_hat), rtol=1e-12, atol=1e-12
    )
    assert loss.levels["sigma"] == pytest.approx([by_hand.levels(family)[stop]] * 2)


@pytest.mark.parametrize(("path", "prediction"), CASES)
@pytest.mark.parametrize("batch", BATCHES[:4])
def test_the_gradient_is_that_of_the_chain_with_every_input_cut_off(path, prediction, batch):
    family = ToyFamily(path, prediction)
    drtune = method(family, early_stop=3)
    (found,) = by_hand.gradients(drtune, family, batch)
    stop, trained = drtune.steps(batch)
    x0_hat = by_chain.walk_cut(
        family,
        by_hand.batch_noise(batch),
        way_to_the_guess(family, stop),
        dict.fromkeys(trained, 1.0),
    )
    torch.testing.assert_close(
        found, by_hand.gradient(family, by_hand.absolute_loss(family, x0_hat)), **EXACT
    )


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_one_step_that_is_judged_where_it_is_trained_is_refl(path, prediction):
    """With a single sampling step the chain has one link, and the finite difference of the whole
    loss is the gradient."""
    family, rollout = (
        ToyFamily(path, prediction),
        config.RolloutConfig(num_inference_steps=1, embedded_guidance=by_hand.GUIDANCE),
    )
    (found,) = by_hand.gradients(
        method(family, rollout=rollout, trained_steps=1, early_stop=1), family, BATCHES[0]
    )
    noise, sigmas = by_hand.batch_noise(BATCHES[0]), by_hand.levels(family, 1)
    expected = by_hand.numerical_gradient(
        family, lambda: by_hand.absolute_loss(family, by_hand.walk(family, noise, sigmas))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_all_steps_without_an_early_stop_are_flowbp_with_all_steps(path, prediction):
    each = []
    for made, settings in (
        (DRTune, config.DRTuneConfig(trained_steps=4, early_stop=1)),
        (FlowBP, config.FlowBPConfig(trained_steps=4)),
    ):
        family = ToyFamily(path, prediction)
        each += by_hand.gradients(made(family, ToyReward(), settings, ROLLOUT), family, BATCHES[0])
    torch.testing.assert_close(each[0], each[1], **EXACT)


@pytest.mark.parametrize("batch", BATCHES)
def test_only_the_trained_calls_carry_a_graph_and_nothing_comes_after_the_stop(batch):
    family = ToyFamily()
    drtune = method(family, early_stop=3)
    seen = by_hand.watch_gradients(family)
    list(drtune.losses(batch))
    stop, trained = drtune.steps(batch)
    assert seen == [index in trained for index in range(stop + 1)]
    assert sum(seen) == 2 and {guidance for _, guidance in family.calls} == {by_hand.GUIDANCE}


@pytest.mark.parametrize(
    ("num_inference_steps", "trained_steps", "early_stop"),
    [(4, 2, 3), (8, 3, 2), (25, 3, 10), (4, 1, 4), (3, 2, 2)],
)
def test_the_stop_is_uniform_and_the_trained_steps_are_equally_spaced_wherever_they_fit(
    num_inference_steps, trained_steps, early_stop
):
    drtune = method(
        rollout=config.RolloutConfig(num_inference_steps=num_inference_steps),
        trained_steps=trained_steps,
        early_stop=early_stop,
    )
    draws = [drtune.steps(Batch(step, PROMPTS)) for step in range(1200)]
    stops = Counter(stop for stop, _ in draws)
    assert set(stops) == set(range(num_inference_steps - early_stop, num_inference_steps))
    assert all(
        abs(count - 1200 / early_stop) < 4 * (1200 / early_stop) ** 0.5 for count in stops.values()
    )
    for stop, trained in draws:
        assert len(trained) == trained_steps and trained[0] >= 0 and trained[-1] <= stop
        assert trained_steps == 1 or trained.step == (stop + 1) // trained_steps
    last = {trained for stop, trained in draws if stop == num_inference_steps - 1}
    assert {trained[0] for trained in last} == set(range(len(last))) and max(
        trained[-1] for trained in last
    ) == num_inference_steps - 1


@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_loss_is_what_the_form_maximises(form):
    family, reward, batch = ToyFamily(), ToyReward(), BATCHES[0]
    drtune = method(family, reward, form=form, control_phrases=WORDS)
    (loss,) = drtune.losses(batch)
    stop, trained = drtune.steps(batch)
    x0_hat = by_chain.walk_cut(
        family,
        by_hand.batch_noise(batch),
        way_to_the_guess(family, stop),
        dict.fromkeys(trained, 1.0),
    )
    reference = (
        float(reward.score(reward.images[0].mean((2, 3)), PROMPTS).mean())
        if form == "anchored"
        else None
    )
    expected = by_hand.maximised(reward, by_hand.images_of(family, x0_hat), form, reference)
    assert loss.levels["reward"] == pytest.approx(expected.tolist())
    torch.testing.assert_close(
        by_hand.gradient(family, loss.value), by_hand.gradient(family, -expected.mean()), **EXACT
    )


def test_more_trained_steps_than_the_earliest_stop_leaves_are_refused():
    method(trained_steps=2, early_stop=3)
    with pytest.raises(
        DirectAlignError,
        match=r"method\.trained_steps 3 .*early_stop 3 .*num_inference_steps 4 may end after 2",
    ):
        method(trained_steps=3, early_stop=3)


def test_they_are_refused_before_anything_is_loaded():
    check_method(load_run("world_drtune", ["method.trained_steps=6"]))
    with pytest.raises(DirectAlignError, match="may end after 6"):
        check_method(load_run("world_drtune", ["method.trained_steps=7"]))
