"""Flow-GRPO and DanceGRPO on a model of a few numbers: policy gradient, advantages, resume, KL."""

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from directalign import config
from directalign.diffusion import sde
from directalign.diffusion.rng import NOISE, TRANSITION, draw_noise, update_generator
from directalign.diffusion.sampling import rollout_conditioning
from directalign.methods.flow_grpo import FlowGRPO
from directalign.types import Batch, DirectAlignError, LossTerm
from methods.by_hand import CASES, PROMPTS, read
from methods.toy import ToyFamily, ToyReward

PHRASES = {"positive": ["Photo"], "negative": ["Render"], "order": "average"}
SIX = tuple(prompt for prompt in PROMPTS for _ in range(3))
BATCH = Batch(0, PROMPTS)


def method(
    family: ToyFamily | None = None, reward: Any = None, num_steps: int = 4, **settings: Any
) -> FlowGRPO:
    chosen = config.FlowGRPOConfig.model_validate({"group_size": 3, "noise_level": 0.6, **settings})
    rollout = config.RolloutConfig(num_inference_steps=num_steps)
    return FlowGRPO(family or ToyFamily(), reward or ToyReward(), chosen, rollout)


def gradient(grpo: FlowGRPO, batch: Batch) -> list[Tensor]:
    total = sum(loss.value for loss in grpo.losses(batch))
    return list(torch.autograd.grad(total, list(grpo.model.denoiser.parameters())))


def update(grpo: FlowGRPO, optimizer: torch.optim.Optimizer, batch: Batch) -> list[LossTerm]:
    """One optimizer step, as the trainer takes it."""
    optimizer.zero_grad()
    losses = []
    for loss in read(grpo.losses(batch)):
        loss.value.backward()
        losses.append(loss)
    optimizer.step()
    return losses


def by_hand(
    family: ToyFamily, reward: ToyReward, batch: Batch, a: float
) -> tuple[list[Tensor], Tensor]:
    """Log-densities (steps, 6) of a Flow-GRPO rollout with its states held, and the advantages."""
    x = draw_noise((6, 4, 4, 4), update_generator(batch, NOISE))
    sigmas, logs = [1.0, 0.75, 0.5, 0.25, 0.0], []
    for index in range(4):
        t, dt = sigmas[index], sigmas[index + 1] - sigmas[index]
        v = family.denoiser(x.double(), torch.full((6,), t, dtype=torch.float64), 0.0)
        s = a * math.sqrt(t / (1 - (sigmas[1] if t == 1 else t))) if index < 3 else 0.0
        mean = x + (v + s**2 / (2 * t) * (x + (1 - t) * v)) * dt
        fresh = draw_noise((6, 4, 4, 4), update_generator(batch, TRANSITION, index))
        moved = mean.detach() + s * math.sqrt(-dt) * fresh
        if index < 3:
            logs.append(Normal(mean, s * math.sqrt(-dt)).log_prob(moved).mean((1, 2, 3)))
        x = moved
    score = reward.score(family.decode(x).clamp(0, 1).mean((2, 3)), SIX).view(2, 3)
    advantage = (score - score.mean(1, keepdim=True)) / score.std(1, correction=0, keepdim=True)
    return logs, advantage.flatten().detach()


def test_the_first_update_of_a_rollout_is_reinforce():
    """Ratios of 1, and the gradient of -mean(advantage · log p) over samples and steps."""
    family, reward, batch = ToyFamily(), ToyReward(), Batch(3, PROMPTS, seed=5)
    grpo = method(family, reward, sde="flow_grpo", noise_level=0.7)
    metrics = [loss.metrics for loss in read(grpo.losses(batch))]
    assert all((each["ratio"], each["clip_fraction"]) == (1.0, 0.0) for each in metrics)
    logs, advantage = by_hand(family, reward, batch, 0.7)
    objective = torch.stack([(advantage * log).mean() for log in logs]).mean()
    expected = torch.autograd.grad(-objective, list(family.denoiser.parameters()))
    for ours, theirs in zip(gradient(grpo, batch), expected, strict=True):
        # the std of a group has a small summand
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_the_gradient_equals_finite_differences_of_the_log_probability():
    family, batch = ToyFamily(), Batch(0, PROMPTS, seed=2)
    grpo = method(family, updates_per_rollout=2)
    with torch.enable_grad():
        ours = gradient(grpo, batch)[1]
    made, cond = grpo.rollouts[0], family.encode_prompt(SIX)

    def objective() -> float:
        total = 0.0
        for index in range(3):
            states, sigmas = made.states[index : index + 2], made.sigmas[index : index + 2]
            moved = grpo._transition(states[0], cond, *sigmas)
            total += float((made.advantage * sde.log_prob(moved, states[1])).mean()) / 3
        return total

    for channel in range(4):
        ends = []
        for sign in (1, -1):
            family.denoiser.bias[channel] += sign * 1e-5
            ends.append(objective())
            family.denoiser.bias[channel] -= sign * 1e-5
        slope = -(ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float(ours[channel]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_a_rollout_is_made_once_and_a_black_box_will_do(path, prediction):
    family, reward = ToyFamily(path, prediction), ToyReward(differentiable=False)
    losses = list(read(method(family, reward, trained_steps=2).losses(BATCH)))
    assert len(losses) == 2 and len(family.calls) == 4 + 2
    assert all(loss.value.requires_grad and torch.isfinite(loss.value) for loss in losses)
    assert all(len(loss.levels["sigma"]) == len(loss.levels["reward"]) == 6 for loss in losses)
    assert len(reward.images) == 1 and reward.images[0].shape[0] == 6
    assert reward.prompts == [SIX]


def test_one_noise_for_a_group_still_gives_different_samples():
    states = method(same_noise=True)._roll_out(BATCH).states
    noise, x0 = states[0], states[-1]
    assert noise[0].equal(noise[2]) and not noise[0].equal(noise[3])
    assert not x0[0].equal(x0[2])
    other = method()._roll_out(BATCH).states[0]
    assert not other[0].equal(other[1])


# --- advantages -----------------------------------------------------------------------------------


class Shifted(ToyReward):
    """Adds 100 to every score of the second prompt."""

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        shift = [prompt.endswith(PROMPTS[1]) for prompt in prompts]
        return super().score(features, prompts) + 100 * torch.tensor(shift)


def test_advantages_compare_samples_of_one_prompt_in_any_form():
    rewards = (ToyReward(), Shifted())
    plain, shifted = (method(None, each)._roll_out(BATCH).advantage for each in rewards)
    torch.testing.assert_close(plain, shifted)
    family, reward = ToyFamily(), ToyReward(differentiable=False)
    made = method(family, reward, form="relative", control_phrases=PHRASES)._roll_out(BATCH)
    features = family.decode(made.states[-1]).clamp(0, 1).mean((2, 3))
    pos, neg = (
        reward.score(features, [f"{phrase}. {prompt}" for prompt in SIX])
        for phrase in ("Photo", "Render")
    )
    torch.testing.assert_close(made.advantage, sde.group_advantage(pos - neg, 3))
    assert made.metrics["reward"] == pytest.approx(float((pos - neg).mean()))


# --- several updates of one rollout ---------------------------------------------------------------


def test_updates_alternate_over_the_steps_of_one_rollout():
    family = ToyFamily()
    grpo = method(family, trained_steps=1, updates_per_rollout=3)
    sigmas = [next(read(grpo.losses(Batch(step, PROMPTS)))).levels["sigma"][0] for step in range(3)]
    assert sorted(sigmas) == [0.5, 0.75, 1.0]
    assert len(family.calls) == 4 + 3 and grpo.rollouts == {}
    list(grpo.losses(Batch(3, PROMPTS)))
    assert len(family.calls) == 4 + 3 + 4 + 1


def test_a_window_alone_has_noise_and_is_trained_and_moves_by_rollout():
    """MixGRPO; the deterministic steps are Euler's."""
    family, sigmas = ToyFamily(), [1.0, 0.75, 0.5, 0.25, 0.0]
    grpo = method(family, sde="flow_grpo", sde_window=1, window_every=1, updates_per_rollout=2)
    for step, place in enumerate([0, 0, 1, 1, 2, 2, 0, 0]):
        (made,) = grpo.rollouts.values() if step % 2 else (None,)
        (loss,) = read(grpo.losses(Batch(step, PROMPTS)))
        assert loss.levels["sigma"] == [sigmas[place]] * 6 and loss.metrics["ratio"] == 1.0
        for index, (level, lower) in enumerate(pairwise(sigmas) if made else ()):
            x_t, t = made.states[index], torch.full((6,), level, dtype=torch.float64)
            euler = x_t + (lower - level) * family.denoiser(x_t.double(), t, 0.0)
            moved = made.states[index + 1].double()
            assert torch.allclose(moved, euler, atol=1e-6) == (index != place)


def test_a_window_of_all_steps_is_flow_grpo():
    whole, windowed = method(), method(sde_window=3)
    for a, b in zip(gradient(whole, BATCH), gradient(windowed, BATCH), strict=True):
        assert torch.equal(a, b)


def test_phrases_cycle_by_rollout():
    """By update, every rollout of two updates would get the same one of two phrases."""
    reward, phrases = ToyReward(), {"positive": ["Photo", "Real"]}
    grpo = method(None, reward, control_phrases=phrases, updates_per_rollout=2)
    for step in range(4):
        list(grpo.losses(Batch(step, PROMPTS)))
    assert [texts[0] for texts in reward.prompts] == ["Photo. a red star", "Real. a red star"]


def test_the_second_update_has_other_ratios_and_is_clipped():
    grpo = method(updates_per_rollout=2, clip_range=1e-6)
    update(grpo, torch.optim.SGD(grpo.model.denoiser.parameters(), lr=1e-2), BATCH)
    for loss in read(grpo.losses(Batch(1, PROMPTS))):
        assert loss.metrics["ratio"] != 1.0 and loss.metrics["clip_fraction"] > 0


def test_a_run_resumes_in_the_middle_of_a_rollout():
    """The state is stored in a file that is read with weights_only, as in the trainer."""
    settings = {"form": "anchored", "control_phrases": PHRASES, "updates_per_rollout": 2}
    whole, resumed = (method(**settings, anchor={"reference_updates": 1}) for _ in range(2))
    optimizers = [torch.optim.SGD(g.model.denoiser.parameters(), lr=1e-2) for g in (whole, resumed)]
    update(whole, optimizers[0], BATCH)
    file = io.BytesIO()
    state = {"method": dict(whole.state_dict()), "weights": whole.model.denoiser.state_dict()}
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.model.denoiser.load_state_dict(state["weights"])
    resumed.load_state_dict(state["method"])
    for step in (1, 2, 3):
        found = []
        for grpo, optimizer in zip((whole, resumed), optimizers, strict=True):
            losses = update(grpo, optimizer, Batch(step, PROMPTS))
            found.append([(loss.value.item(), loss.metrics) for loss in losses])
        assert found[0] == found[1]


def test_equal_rewards_are_said_once(caplog, monkeypatch):
    monkeypatch.setattr(ToyReward, "score", lambda self, f, prompts: torch.full((len(f),), 0.3))
    grpo = method()
    for step in range(2):
        list(grpo.losses(Batch(step, PROMPTS)))
    assert caplog.messages == [
        "all samples of a prompt have one reward: nothing is learned from them"
    ]


# --- the base model -------------------------------------------------------------------------------


def test_the_kl_is_from_the_weights_at_the_beginning():
    grpo, free = method(kl_beta=0.5), method()
    held, plain = (list(read(each.losses(BATCH))) for each in (grpo, free))
    assert free.centre is None and all(loss.metrics["kl"] == 0.0 for loss in held)
    assert [loss.value.item() for loss in held] == [loss.value.item() for loss in plain]
    with torch.no_grad():
        grpo.model.denoiser.bias += 0.1
    made = grpo._roll_out(Batch(1, PROMPTS))
    cond = rollout_conditioning(grpo.model.encode_prompt(made.prompts), grpo.rollout)
    (found,) = read([grpo._step_loss(made, cond, 1, 1)])
    with torch.no_grad():
        step = made.states[1], cond, made.sigmas[1], made.sigmas[2]
        ours, theirs = (each._transition(*step) for each in (grpo, free))
    kl = float(((ours.mean - theirs.mean) ** 2).mean() / (2 * float(ours.std[0]) ** 2))
    assert found.metrics["kl"] == pytest.approx(kl)
    assert found.value.item() == pytest.approx(0.5 * kl - float(made.advantage.mean()))


def test_the_released_kl_leaves_out_the_length_of_the_step():
    """(difference of means)² / (2·std_dev_t²), std_dev_t the step's std over the root of its
    length."""
    made = [method(kl_beta=0.5, sde="flow_grpo", kl_form=form) for form in ("exact", "released")]
    for each in made:
        rollouts = each._roll_out(Batch(1, PROMPTS))
        with torch.no_grad():
            each.model.denoiser.bias += 0.1
        cond = rollout_conditioning(each.model.encode_prompt(rollouts.prompts), each.rollout)
        (each.found,) = read([each._step_loss(rollouts, cond, 1, 1)])
    exact, released = (each.found.metrics["kl"] for each in made)
    length = float(rollouts.sigmas[1] - rollouts.sigmas[2])
    assert released == pytest.approx(exact * length) and released < exact
    with pytest.raises(ValueError, match="kl_form"):
        method(kl_beta=0.5, sde="ddim", kl_form="released")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 1}, r"trained_steps: all of the 0 .*num_inference_steps: 1"),
        ({"sde_window": 4}, r"sde_window: 4 of the 3 .*num_inference_steps: 4"),
        ({"sde_window": 1, "trained_steps": 2}, r"trained_steps 2, and sde_window 1 has fewer"),
        ({"window_every": 2}, "set sde_window"),
        ({"trained_steps": 4}, r"trained_steps: 4 of the 3 .*num_inference_steps: 4"),
        ({"family": ToyFamily("vp", "epsilon"), "sde": "flow_grpo"}, r"set method\.sde: ddim"),
        ({"family": ToyFamily("vp", "epsilon"), "sde": "dance"}, r"method\.sde: dance .* ddim"),
        ({"margin": 0.7}, "margin belongs to a hinge"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, message):
    with pytest.raises((DirectAlignError, ValueError), match=message):
        method(**given)
