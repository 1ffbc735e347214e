"""Several rewards in one, in float64: what is asked of each, and the algebra of spread,
disagreement and balance."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.interfaces import Reward
from directalign.methods.objective import DECAY, MixedObjective, RunningStats, build_objective
from directalign.methods.objective_math import mixed_reward
from directalign.methods.srpo import SRPO
from directalign.preflight.checks import check_method, check_reward
from directalign.rewards import load_reward
from directalign.rewards.mixture import Member, MixReward
from directalign.types import Batch, DirectAlignError
from methods.toy import ToyFamily, ToyReward

PROMPTS = ("a red star", "a blue ring")
WORDS = {"positive": ["Photo"], "negative": ["Render"]}
SETTINGS = config.SRPOConfig.model_validate({"form": "relative", "control_phrases": WORDS})


def images(step: int = 0, count: int = 2) -> Tensor:
    return torch.rand(
        count, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
    )


class Squares(ToyReward):
    """The mean square of the pixels, whose gradient depends on the image, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(reads_prompt=False)
        self.factor = factor

    def encode(self, images: Tensor) -> Tensor:
        return self.factor * images.square().mean((1, 2, 3))

    def score(self, features: Tensor, prompts: Any) -> Tensor:
        return features


def mix(*members: tuple[dict[str, Any], Reward], **settings: Any) -> MixReward:
    """Members from their settings, without the section of their reward, and the reward."""
    anything = {"name": "pixels", "statistic": "redness"}
    given = [
        {"label": f"m{place}", "reward": anything, **each}
        for place, (each, _) in enumerate(members)
    ]
    parsed = config.MixtureConfig.model_validate({"members": given, **settings})
    return MixReward(
        [Member(each, reward) for each, (_, reward) in zip(parsed.members, members, strict=True)],
        parsed,
    )


def toys(**settings: Any) -> MixReward:
    return mix(({"weight": 2.0}, ToyReward()), ({"form": "absolute"}, Squares(30.0)), **settings)


def asking(reward: MixReward) -> MixedObjective:
    found = build_objective(reward, SETTINGS)
    assert isinstance(found, MixedObjective)
    return found


def raw(seen: Tensor, k_pos: float = 0.0, k_neg: float = 0.0) -> Tensor:
    """What the members of `toys` are to maximise, (2, b)."""
    features = seen.mean((2, 3))
    pos, neg = (
        ToyReward().score(features, [f"{word}. {prompt}" for prompt in PROMPTS])
        for word in ("Photo", "Render")
    )
    return torch.stack([(1 + k_pos) * pos - (1 + k_neg) * neg, 30 * seen.square().mean((1, 2, 3))])


def test_a_mixture_is_a_reward_and_its_score_the_weighted_sum() -> None:
    parsed = config.MixtureConfig.model_validate(
        {
            "members": [
                {
                    "label": "red",
                    "weight": 0.5,
                    "reward": {"name": "pixels", "statistic": "redness"},
                },
                {
                    "label": "dark",
                    "weight": 2.0,
                    "reward": {"name": "pixels", "statistic": "brightness", "scale": 3.0},
                },
            ]
        }
    )
    reward = load_reward(parsed)
    assert isinstance(reward, Reward) and isinstance(reward, MixReward)
    assert reward.differentiable and not reward.reads_prompt
    features, red, light = (
        reward.encode(images()),
        images()[:, 0].mean((1, 2)),
        images().mean((1, 2, 3)),
    )
    each = reward.each(features, PROMPTS)
    assert list(each) == ["red", "dark"]
    torch.testing.assert_close(each["dark"], 3 * light)
    torch.testing.assert_close(
        reward.score(features, PROMPTS), 0.5 * (red - images()[:, 1:].mean((1, 2, 3))) + 6 * light
    )


def test_what_a_mixture_can_do_follows_from_its_members() -> None:
    assert toys().reads_prompt and toys().differentiable
    assert not mix(({}, ToyReward()), ({}, ToyReward(differentiable=False))).differentiable


def test_each_member_is_asked_in_its_own_form_and_words() -> None:
    relative, own, absolute, bare = ToyReward(), ToyReward(), ToyReward(), ToyReward()
    words = {"positive": ["Glossy"], "negative": ["Dull"]}
    members = (
        ({}, relative),
        ({"control_phrases": words}, own),
        ({"form": "absolute", "control_phrases": words}, absolute),
        ({"form": "absolute"}, bare),
    )
    asking(mix(*members))(images(), Batch(0, PROMPTS))
    asked = [[texts[0] for texts in reward.prompts] for reward in (relative, own, absolute, bare)]
    assert asked == [
        ["Photo. a red star", "Render. a red star"],
        ["Glossy. a red star", "Dull. a red star"],
        ["Glossy. a red star"],
        ["a red star"],
    ]


def test_the_reward_is_the_weighted_sum_over_running_spreads() -> None:
    """The first update goes by its own images, later ones by those before, older ones weighing
    less."""
    preference, weights = asking(toys()), torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    seen = [raw(images(step), 0.3, 0.1) for step in range(3)]
    share = [
        torch.tensor([1.0, 1.0]).double(),
        torch.tensor([1.0]).double(),
        torch.tensor([1.0, 1.0, DECAY, DECAY]).double(),
    ]
    rows = [seen[0], None, torch.cat([seen[1], seen[0]], 1)]
    for step in (0, 2):
        values, weight = rows[step], share[step]
        means = (values * weight).sum(1, keepdim=True) / weight.sum()
        spread = (((values - means).square() * weight).sum(1, keepdim=True) / weight.sum()).sqrt()
        if step == 2:
            preference(images(1), Batch(1, PROMPTS), 0.3, 0.1)
        asked = preference(images(step), Batch(step, PROMPTS), 0.3, 0.1)
        torch.testing.assert_close(
            asked.reward, (weights * seen[step] / spread).sum(0), rtol=1e-7, atol=0
        )
        assert asked.metrics["reward_m1"] == pytest.approx(float(seen[step][1].mean()))
        assert asked.metrics["share_m0"] + asked.metrics["share_m1"] == pytest.approx(
            asked.metrics["reward"]
        )
        assert {"score_pos_m0", "score_neg_m0", "score_plain_m1"} <= asked.metrics.keys()


def test_without_normalising_raw_rewards_are_added() -> None:
    asked = asking(toys(normalise="none"))(images(), Batch(0, PROMPTS))
    torch.testing.assert_close(asked.reward, 2 * raw(images())[0] + raw(images())[1])


def test_disagreement_takes_off_the_spread_between_members() -> None:
    plain, careful = asking(toys()), asking(toys(std_penalty=0.7))
    plain_asked, asked = (each(images(), Batch(0, PROMPTS)) for each in (plain, careful))
    rewards = raw(images())
    centred = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(
        plain_asked.reward - asked.reward, 0.7 * centred.std(0, correction=0), rtol=1e-9, atol=1e-6
    )


def test_a_cost_agrees_by_being_low() -> None:
    units, weights = torch.rand(2, 5, dtype=torch.float64), torch.tensor([1.0, -0.5]).double()
    against = torch.stack([units[0], -units[0]])
    means = against.mean(1)
    torch.testing.assert_close(
        mixed_reward(against, means, weights, 3.0), 1.5 * units[0], rtol=0, atol=1e-5
    )
    assert (mixed_reward(units, units.mean(1), weights, 3.0) < units[0] - 0.5 * units[1]).all()


def test_members_that_agree_pay_nothing_and_leave_a_gradient() -> None:
    same = mix(({}, Squares()), ({}, Squares()), std_penalty=0.5)
    at = images().requires_grad_()
    asked = build_objective(same, SETTINGS.model_copy(update={"form": "absolute"}))(
        at, Batch(0, PROMPTS)
    )
    gradient = torch.autograd.grad(asked.reward.sum(), at)[0]
    assert gradient.isfinite().all() and gradient.norm() > 0
    alone = build_objective(
        mix(({}, Squares()), ({}, Squares())), SETTINGS.model_copy(update={"form": "absolute"})
    )(images(), Batch(0, PROMPTS))
    torch.testing.assert_close(asked.reward, alone.reward, rtol=0, atol=1e-6)


@pytest.mark.parametrize("disagreement", [0.0, 0.4])
def test_balance_gives_every_member_one_norm_and_leaves_the_value(disagreement: float) -> None:
    at = images().requires_grad_()
    asked = asking(toys(gradient_normalization=True, std_penalty=disagreement))(
        at, Batch(0, PROMPTS)
    )
    ours = torch.autograd.grad(asked.reward.sum(), at)[0]
    plain = asking(toys(std_penalty=disagreement))(images(), Batch(0, PROMPTS))
    assert asked.reward.equal(plain.reward)

    again = images().requires_grad_()
    rewards = raw(again)
    gradients = torch.stack(
        [torch.autograd.grad(reward.sum(), again, retain_graph=True)[0] for reward in rewards]
    )
    norms = gradients.flatten(2).norm(dim=2).square().mean(1).sqrt()
    scales, means = rewards.std(1, correction=0).detach(), rewards.mean(1).detach()
    units = (rewards.detach() / scales[:, None]).requires_grad_()
    spread = ((units - (means / scales)[:, None]).var(0, correction=0) + 1e-12).sqrt()
    mixed = 2 * units[0] + units[1] - disagreement * spread
    slopes = torch.autograd.grad(mixed.sum(), units)[0]
    expected = sum(
        (norms / scales).mean() * slopes[m][:, None, None, None] * gradients[m] / norms[m]
        for m in range(2)
    )
    torch.testing.assert_close(
        ours, expected, rtol=1e-5, atol=1e-9
    )  # a spread from sums of squares
    assert asked.metrics["gradient_m0"] == pytest.approx(
        float(gradients[0].flatten(1).norm(dim=1).mean())
    )


def test_members_of_one_norm_are_left_as_they_are() -> None:
    absolute, found = SETTINGS.model_copy(update={"form": "absolute"}), []
    for balance in (False, True):
        at, weighed = (
            images().requires_grad_(),
            mix(({"weight": 3.0}, Squares()), ({}, Squares()), gradient_normalization=balance),
        )
        found.append(
            torch.autograd.grad(
                build_objective(weighed, absolute)(at, Batch(0, PROMPTS)).reward.sum(), at
            )[0]
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("balance", [False, True])
def test_hinge_and_direction_act_on_a_mixture_as_on_its_one_kind_of_member(balance: bool) -> None:
    rollout = config.RolloutConfig(num_inference_steps=3, embedded_guidance=1.0)
    settings = config.SRPOConfig.model_validate(
        {
            "control_phrases": WORDS,
            "branches": "both",
            "margin": 0.7,
            "inversion": {"k_neg": {"low_noise": 0.3, "high_noise": 0.01}},
        }
    )
    halves = mix(
        ({"weight": 0.5}, ToyReward()),
        ({"weight": 0.5}, ToyReward()),
        normalise="none",
        gradient_normalization=balance,
    )
    each = []
    for reward in (ToyReward(), halves):
        family: Any = ToyFamily()
        method = SRPO(family, reward, settings, rollout)
        loss = torch.stack([loss.value for loss in method.losses(Batch(0, PROMPTS, seed=3))]).sum()
        each.append(torch.autograd.grad(loss, list(method.model.denoiser.parameters())))
    for single, mixed in zip(*each, strict=True):
        assert single.abs().max() > 0
        torch.testing.assert_close(mixed, single, rtol=1e-9, atol=1e-12)


# running numbers


class Half:
    """Rank 0 of two; what the other rank would add is known beforehand."""

    rank, size = 0, 2

    def __init__(self, other: Tensor) -> None:
        self.other = other

    def sum(self, values: Tensor) -> Tensor:
        return values + torch.stack(
            [
                torch.full((2,), float(self.other.shape[1])).double(),
                self.other.sum(1),
                self.other.square().sum(1),
            ]
        )

    def gather(self, values: Tensor) -> Tensor:
        raise NotImplementedError


def test_running_numbers_do_not_depend_on_how_an_update_is_cut() -> None:
    whole, cut, ranks = RunningStats(2), RunningStats(2), RunningStats(2)
    for step in range(4):
        values = torch.rand(
            2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
        )
        whole.update(values, step)
        for start in (0, 2, 4):
            cut.update(values[:, start : start + 2], step)
        ranks.update(values[:, :3], step, Half(values[:, 3:]))
        for other in (cut, ranks):
            torch.testing.assert_close(other.stds, whole.stds, rtol=1e-12, atol=0)
            torch.testing.assert_close(other.means, whole.means, rtol=1e-12, atol=0)


def test_what_never_varies_is_divided_by_one() -> None:
    running = RunningStats(3)
    running.update(torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3]]), 0)
    assert running.stds[:2].tolist() == [1.0, 1.0] and running.stds[2] == pytest.approx(0.0816497)


def test_a_resumed_mixture_goes_on_to_the_bit() -> None:
    settings = SETTINGS.model_copy(update={"form": "anchored"})
    first, second = (
        build_objective(toys(gradient_normalization=True, std_penalty=0.2), settings)
        for _ in range(2)
    )
    for step in range(3):
        first(images(step), Batch(step, PROMPTS))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first(images(9), Batch(3, PROMPTS))  # what is kept is not what goes on changing
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    first.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for step in range(3, 6):
        asked = [each(images(step), Batch(step, PROMPTS)) for each in (first, second)]
        assert asked[0].reward.equal(asked[1].reward) and asked[0].metrics == asked[1].metrics


def test_each_member_has_its_own_anchor() -> None:
    settings = SETTINGS.model_copy(update={"form": "anchored"})
    other = {"tolerance": 3.0, "reference_updates": 1}
    preference = build_objective(mix(({}, ToyReward()), ({"anchor": other}, ToyReward())), settings)
    assert isinstance(preference, MixedObjective)
    for step in range(2):
        preference(images(step), Batch(step, PROMPTS))
    assert [each.reference.count for each in preference.objectives] == [4, 2]
    assert [each.settings.anchor.tolerance for each in preference.objectives] == [0.05, 3.0]


# refusals


def test_a_member_that_cannot_do_it_is_named() -> None:
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.members\.1\.form: toy ignores prompts",
    ):
        build_objective(mix(({}, ToyReward()), ({}, Squares())), SETTINGS)
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.members\.1\.reward\.name toy is a black box",
    ):
        build_objective(mix(({}, ToyReward()), ({}, ToyReward(differentiable=False))), SETTINGS)
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.members\.0\.control_phrases: form relative compares two phrasings",
    ):
        build_objective(
            mix(({"control_phrases": {"positive": ["Photo"]}}, ToyReward()), ({}, ToyReward())),
            SETTINGS,
        )
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.gradient_normalization: true needs a method that differentiates",
    ):
        build_objective(
            toys(gradient_normalization=True), config.FlowGRPOConfig(), differentiable=False
        )


CLIP = {"label": "taste", "reward": {"name": "clip", "path": "world:reward"}}
RED = {"label": "red", "form": "absolute", "reward": {"name": "pixels", "statistic": "redness"}}


def run_of(
    members: list[dict[str, Any]], method: dict[str, Any], **settings: Any
) -> config.RunConfig:
    recipe = {
        "name": "x",
        "model": {"architecture": "flux", "path": "world:flux"},
        "reward": {"name": "mix", "members": members, **settings},
    }
    return config.RunConfig.model_validate(
        recipe
        | {
            "method": {"control_phrases": WORDS, **method},
            "data": {"prompts": "world"},
            "train": {"num_steps": 1},
        }
    )


@pytest.mark.parametrize(
    ("members", "method", "settings", "complaint"),
    [
        (
            [CLIP, RED | {"form": "method"}],
            {},
            {},
            r"reward\.members\.1\.reward\.name: pixels ignores prompts.* set "
            r"reward\.members\.1\.form: absolute",
        ),
        (
            [CLIP, {"label": "far", "reward": {"name": "remote", "url": "http://h/score"}}],
            {},
            {},
            r"reward\.members\.1\.reward\.name remote is a black box",
        ),
        (
            [CLIP | {"reward": {"name": "clip", "path": "nowhere"}}, RED],
            {},
            {},
            r"reward\.members\.0\.reward\.path: nowhere: no such folder",
        ),
        (
            [CLIP, {"label": "own", "reward": {"name": "python", "path": "none.py:f"}}],
            {},
            {},
            r"reward\.members\.1\.reward\.path: none\.py: no such Python file",
        ),
        (
            [CLIP, RED],
            {"name": "flow_grpo"},
            {"gradient_normalization": True},
            r"reward\.gradient_normalization: true needs a method that differentiates",
        ),
        (
            [CLIP | {"control_phrases": {"positive": [" "], "negative": ["x"]}}, RED],
            {},
            {},
            r"reward\.members\.0\.control_phrases\.positive: .*blank phrase",
        ),
        (
            [CLIP, RED | {"control_phrases": {"positive": ["t.safetensors"]}}],
            {},
            {},
            r"reward\.members\.1\.control_phrases\.positive: t\.safetensors .* pixels",
        ),
        (
            [CLIP, RED],
            {"control_phrases": {"positive": ["t.safetensors"], "negative": ["x"]}},
            {},
            r"method\.control_phrases\.positive: t\.safetensors .* member",
        ),
    ],
)
def test_what_a_recipe_asks_of_a_member_is_checked_before_the_start(
    members: list[dict[str, Any]], method: dict[str, Any], settings: dict[str, Any], complaint: str
) -> None:
    run = run_of(members, method, **settings)
    with pytest.raises(DirectAlignError, match=complaint):
        check_reward(run)
        check_method(run)


def test_a_sound_mixture_passes() -> None:
    for method in ({}, {"name": "flow_grpo", "form": "relative"}):
        check_reward(run_of([CLIP, RED], method))
        check_method(run_of([CLIP, RED], method))
