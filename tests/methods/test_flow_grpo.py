from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from directalign import config
from directalign.diffusion import sde as transition
from directalign.diffusion.rng import NOISE, TRANSITION, draw_noise, update_generator
from directalign.diffusion.sampling import sample, start_rollout
from directalign.methods.flow_grpo import FlowGRPO
from directalign.models.lora import ReferenceModel
from directalign.rewards.python_function import PythonReward
from directalign.types import Batch, DirectAlignError, LossTerm
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

WORDS = {"positive": ["Photo"], "negative": ["Render"], "order": "average"}
PROMPTS = ("a red star", "a blue ring")
ROLLOUT = config.RolloutConfig(num_inference_steps=4)


def method(
    family: ToyFamily | None = None,
    reward: Any = None,
    rollout: config.RolloutConfig = ROLLOUT,
    **settings: Any,
) -> FlowGRPO:
    chosen = config.FlowGRPOConfig.model_validate({"group_size": 3, "noise_level": 0.6, **settings})
    return FlowGRPO(family or ToyFamily(), reward or ToyReward(), chosen, rollout)


def gradient(grpo: FlowGRPO, batch: Batch) -> list[Tensor]:
    total = sum(loss.value for loss in grpo.losses(batch))
    return list(torch.autograd.grad(total, list(grpo.model.denoiser.parameters())))


def update(grpo: FlowGRPO, optimizer: torch.optim.Optimizer, batch: Batch) -> list[LossTerm]:
    """One optimiser step, as the trainer takes it."""
    optimizer.zero_grad()
    losses = []
    for loss in grpo.losses(batch):
        loss.value.backward()
        losses.append(loss)
    optimizer.step()
    return losses


def by_hand(
    family: ToyFamily, reward: ToyReward, batch: Batch, a: float
) -> tuple[list[Tensor], Tensor]:
    """Log-densities (steps, 6) of one Flow-GRPO rollout under the present weights, x's held fixed,
    and the advantages: no code shared with the method."""
    x = draw_noise((6, 4, 4, 4), update_generator(batch, NOISE))
    sigmas, logs = [1.0, 0.75, 0.5, 0.25, 0.0], []
    for index in range(4):
        t, dt = sigmas[index], sigmas[index + 1] - sigmas[index]
        v = family.denoiser(x.double(), torch.full((6,), t, dtype=torch.float64), 0.0)
        s = a * math.sqrt(t / (1 - (sigmas[1] if t == 1 else t))) if index < 3 else 0.0
        mean = x + (v + s**2 / (2 * t) * (x + (1 - t) * v)) * dt
        moved = mean.detach() + s * math.sqrt(-dt) * draw_noise(
            (6, 4, 4, 4), update_generator(batch, TRANSITION, index)
        )
        if index < 3:
            logs.append(Normal(mean, s * math.sqrt(-dt)).log_prob(moved).mean((1, 2, 3)))
        x = moved
    score = reward.score(
        family.decode(x).clamp(0, 1).mean((2, 3)), [prompt for prompt in PROMPTS for _ in range(3)]
    ).view(2, 3)
    advantage = (score - score.mean(1, keepdim=True)) / score.std(1, correction=0, keepdim=True)
    return logs, advantage.flatten().detach()


def test_the_first_update_of_a_rollout_is_reinforce():
    """Ratios of 1, and the gradient of −mean(advantage · log p) over samples and steps."""
    family, reward, batch = ToyFamily(), ToyReward(), Batch(3, PROMPTS, seed=5)
    grpo = method(family, reward, sde="flow_grpo", noise_level=0.7)
    assert all(
        loss.metrics["ratio"] == 1.0 and loss.metrics["clip_fraction"] == 0.0
        for loss in grpo.losses(batch)
    )

    logs, advantage = by_hand(family, reward, batch, 0.7)
    objective = torch.stack([(advantage * log).mean() for log in logs]).mean()
    expected = torch.autograd.grad(-objective, list(family.denoiser.parameters()))
    for ours, theirs in zip(gradient(grpo, batch), expected, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-7
        )  # the spread of a group carries a small summand


def test_the_gradient_equals_finite_differences_of_the_log_probability():
    family, reward, batch = ToyFamily(), ToyReward(), Batch(0, PROMPTS, seed=2)
    grpo = method(family, reward, updates_per_rollout=2)
    ours = gradient(grpo, batch)[1]
    made = grpo.stored[0]

    def objective() -> float:
        total = 0.0
        for index in range(3):
            moved = grpo._transition(
                made.states[index],
                family.encode_prompt(made.prompts),
                made.sigmas[index],
                made.sigmas[index + 1],
            )
            total += (
                float((made.advantage * transition.log_prob(moved, made.states[index + 1])).mean())
                / 3
            )
        return total

    with torch.no_grad():
        for channel in range(4):
            ends = []
            for sign in (1, -1):
                family.denoiser.bias[channel] += sign * 1e-5
                ends.append(objective())
                family.denoiser.bias[channel] -= sign * 1e-5
            assert -(ends[0] - ends[1]) / 2e-5 == pytest.approx(
                float(ours[channel]), rel=1e-5, abs=1e-9
            )


@pytest.mark.parametrize(
    ("path", "prediction"), [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
)
def test_one_method_serves_every_path_and_prediction(path, prediction):
    losses = list(method(ToyFamily(path, prediction)).losses(Batch(0, PROMPTS)))
    assert len(losses) == 3 and all(
        loss.value.requires_grad and torch.isfinite(loss.value) for loss in losses
    )
    assert all(len(loss.levels["sigma"]) == len(loss.levels["reward"]) == 6 for loss in losses)


def test_a_rollout_is_paid_once_and_the_reward_sees_no_gradient():
    family, reward = ToyFamily(), ToyReward(differentiable=False)
    list(method(family, reward, trained_steps=1).losses(Batch(0, PROMPTS)))
    assert len(family.calls) == 4 + 1
    assert len(reward.images) == 1 and reward.images[0].shape[0] == 6
    assert reward.asked == [tuple(prompt for prompt in PROMPTS for _ in range(3))]


def test_the_smaller_the_noise_the_closer_to_the_deterministic_rollout():
    family, batch = ToyFamily(), Batch(0, PROMPTS)
    six = replace(batch, prompts=tuple(prompt for prompt in PROMPTS for _ in range(3)))
    begun = start_rollout(family, ROLLOUT, six)
    with torch.no_grad():
        x0 = sample(family, begun.cond, begun.noise, begun.sigmas)
    made = method(family, noise_level=1e-6)._roll_out(batch)
    assert made.states[0].equal(begun.noise)
    torch.testing.assert_close(made.states[-1], x0, rtol=0, atol=1e-4)


def test_one_noise_for_a_group_leaves_the_steps_to_tell_samples_apart():
    noise, x0 = (
        (states := method(same_noise=True)._roll_out(Batch(0, PROMPTS)).states)[0],
        states[-1],
    )
    assert noise[0].equal(noise[2]) and not noise[0].equal(noise[3])
    assert not x0[0].equal(x0[2])
    assert not (other := method()._roll_out(Batch(0, PROMPTS)).states[0])[0].equal(other[1])


class Swayed(ToyReward):
    """A reward that adds 100 to whatever the second prompt gets."""

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(features, prompts) + 100 * torch.tensor(
            [prompt.endswith(PROMPTS[1]) for prompt in prompts]
        )


def test_prompts_are_not_compared_with_each_other():
    plain, swayed = (
        method(reward=reward)._roll_out(Batch(0, PROMPTS)).advantage
        for reward in (ToyReward(), Swayed())
    )
    torch.testing.assert_close(plain, swayed)


def test_the_relative_form_is_an_advantage_like_any_other():
    family, reward, batch = ToyFamily(), ToyReward(differentiable=False), Batch(0, PROMPTS)
    made = method(family, reward, form="relative", control_phrases=WORDS)._roll_out(batch)
    features, six = (
        family.decode(made.states[-1]).clamp(0, 1).mean((2, 3)),
        [prompt for prompt in PROMPTS for _ in range(3)],
    )
    pos, neg = (
        reward.score(features, [f"{word}. {prompt}" for prompt in six])
        for word in ("Photo", "Render")
    )
    torch.testing.assert_close(made.advantage, transition.group_advantage(pos - neg, 3))
    assert made.metrics["reward"] == pytest.approx(float((pos - neg).mean()))


# several updates of one rollout


def test_updates_take_turns_at_the_steps_of_one_rollout():
    family = ToyFamily()
    grpo = method(family, trained_steps=1, updates_per_rollout=3)
    sigmas = [next(grpo.losses(Batch(step, PROMPTS))).levels["sigma"][0] for step in range(3)]
    assert sorted(sigmas) == [0.5, 0.75, 1.0]
    assert len(family.calls) == 4 + 3 and grpo.stored == {}
    list(grpo.losses(Batch(3, PROMPTS)))
    assert len(family.calls) == 4 + 3 + 4 + 1


def test_words_take_turns_by_rollout():
    """By update, every rollout of two updates would be asked about the same one of two phrases."""
    reward = ToyReward()
    grpo = method(
        reward=reward, control_phrases={"positive": ["Photo", "Real"]}, updates_per_rollout=2
    )
    for step in range(4):
        list(grpo.losses(Batch(step, PROMPTS)))
    assert [asked[0] for asked in reward.asked] == ["Photo. a red star", "Real. a red star"]


def test_the_second_update_has_other_ratios_and_the_clip_bites():
    grpo = method(updates_per_rollout=2, clip_range=1e-6)
    optimizer = torch.optim.SGD(grpo.model.denoiser.parameters(), lr=1e-2)
    update(grpo, optimizer, Batch(0, PROMPTS))
    second = list(grpo.losses(Batch(1, PROMPTS)))
    assert all(
        loss.metrics["ratio"] != 1.0 and loss.metrics["clip_fraction"] > 0 for loss in second
    )


def test_a_killed_run_goes_on_in_the_middle_of_a_rollout():
    """The state passes through a file that is read with weights_only, as the trainer's does."""
    whole = method(
        form="anchored",
        control_phrases=WORDS,
        updates_per_rollout=2,
        anchor={"reference_updates": 1},
    )
    optimizer = torch.optim.SGD(whole.model.denoiser.parameters(), lr=1e-2)
    update(whole, optimizer, Batch(0, PROMPTS))
    file = io.BytesIO()
    torch.save(
        {"method": dict(whole.state_dict()), "weights": whole.model.denoiser.state_dict()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)

    resumed = method(
        form="anchored",
        control_phrases=WORDS,
        updates_per_rollout=2,
        anchor={"reference_updates": 1},
    )
    resumed.model.denoiser.load_state_dict(state["weights"])
    resumed.load_state_dict(state["method"])
    again = torch.optim.SGD(resumed.model.denoiser.parameters(), lr=1e-2)
    for step in (1, 2, 3):
        ours, theirs = (
            update(resumed, again, Batch(step, PROMPTS)),
            update(whole, optimizer, Batch(step, PROMPTS)),
        )
        assert [loss.value.item() for loss in ours] == [loss.value.item() for loss in theirs]
        assert [loss.metrics for loss in ours] == [loss.metrics for loss in theirs]


def test_accumulated_batches_keep_their_own_rollouts():
    grpo = method(updates_per_rollout=2)
    for place in (0, 2):
        list(grpo.losses(Batch(0, PROMPTS, offset=place, global_size=4)))
    assert sorted(grpo.stored) == [0, 2]
    assert not grpo.stored[0].states[-1].equal(grpo.stored[2].states[-1])


# the base model


def test_the_divergence_is_from_the_weights_at_the_beginning():
    grpo = method(kl_beta=0.5)
    assert all(loss.metrics["kl"] == 0.0 for loss in grpo.losses(Batch(0, PROMPTS)))
    plain = [loss.value.item() for loss in method().losses(Batch(0, PROMPTS))]
    assert [loss.value.item() for loss in grpo.losses(Batch(0, PROMPTS))] == plain
    with torch.no_grad():
        grpo.model.denoiser.bias += 0.1
    made = grpo._roll_out(Batch(1, PROMPTS))
    found = grpo._step_loss(made, grpo._conditioning(made.prompts), 1, 1)
    with torch.no_grad():
        ours = grpo._transition(
            made.states[1], grpo._conditioning(made.prompts), made.sigmas[1], made.sigmas[2]
        )
        theirs = method()._transition(
            made.states[1], grpo._conditioning(made.prompts), made.sigmas[1], made.sigmas[2]
        )
    expected = float(
        ((ours.mean - theirs.mean) ** 2).mean((1, 2, 3)).mean() / (2 * float(ours.std[0]) ** 2)
    )
    assert found.metrics["kl"] == pytest.approx(expected)
    assert found.value.item() == pytest.approx(0.5 * expected - float(made.advantage.mean()))


def test_the_base_is_worn_inside_and_taken_off_after_an_error():
    denoiser = ToyDenoiser()
    base = ReferenceModel(denoiser)
    with torch.no_grad():
        denoiser.bias += 1
    changed = denoiser.bias.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), base.active():
        assert denoiser.bias.equal(ToyDenoiser().bias)
        raise RuntimeError("inside")
    assert denoiser.bias.equal(changed)


def test_adapters_are_switched_off_and_nothing_is_copied():
    class Adapted(nn.Linear):
        peft_config = "settings"
        on = True

        def disable_adapters(self) -> None:
            self.on = False

        def enable_adapters(self) -> None:
            self.on = True

    denoiser = Adapted(2, 2)
    base = ReferenceModel(denoiser)
    assert base.weights == {}
    with base.active():
        assert not denoiser.on
    assert denoiser.on


def test_without_a_divergence_no_base_is_kept():
    assert method().base is None


# it learns, and says what it cannot do


def test_a_black_box_is_climbed():
    """Nothing but numbers comes back from it: the share of reddish images, judged after rounding to
    sixteen colours."""

    def redness(images: Tensor, prompts: list[str]) -> list[float]:
        rounded = (images * 15).round() / 15
        return [float(image[0].mean() - image[1:].mean()) for image in rounded]

    grpo = method(reward=PythonReward(redness), group_size=16)
    optimizer = torch.optim.Adam(grpo.model.denoiser.parameters(), lr=3e-2)
    rewards = [
        update(grpo, optimizer, Batch(step, PROMPTS))[0].metrics["reward"] for step in range(40)
    ]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05


@pytest.mark.parametrize("steps", [1, 4])
def test_more_steps_than_can_be_trained_are_refused(steps):
    with pytest.raises(
        DirectAlignError,
        match=rf"trained_steps: .* of the {steps - 1} .*num_inference_steps: {steps}",
    ):
        method(
            rollout=config.RolloutConfig(num_inference_steps=steps),
            trained_steps=None if steps == 1 else 4,
        )


@pytest.mark.parametrize("sde", ["flow_grpo", "dance"])
def test_steps_of_rectified_flow_are_refused_elsewhere(sde):
    with pytest.raises(DirectAlignError, match=rf"method\.sde: {sde} .* set method\.sde: ddim"):
        method(ToyFamily("vp", "epsilon"), sde=sde)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"margin": 0.7}, "margin belongs to a hinge"),
        ({"noise_level": 1.5}, "at most 1"),
        ({"group_size": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_without_a_meaning_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        config.FlowGRPOConfig.model_validate(given)
