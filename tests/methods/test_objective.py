"""A mixture of rewards in float64: texts of each member, running scales, penalty, normalization."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.interfaces import Reward
from directalign.methods.objective import MixedObjective, build_objective
from directalign.methods.objective_math import DECAY, RunningStats, mixed_reward
from directalign.preflight.checks import check_method, check_reward
from directalign.rewards import load_reward
from directalign.rewards.mixture import Member, MixReward
from directalign.types import Batch, DirectAlignError
from methods.by_hand import PROMPTS
from methods.toy import ToyReward

PHRASES = {"positive": ["Photo"], "negative": ["Render"]}
BATCH = Batch(0, PROMPTS)


def settings_of(form: str = "relative", **more: Any) -> config.SRPOConfig:
    return config.SRPOConfig.model_validate({"form": form, "control_phrases": PHRASES, **more})


def images(step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator)


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
    section = {"reward": {"name": "pixels", "statistic": "redness"}}
    given = [{"label": f"m{i}", **section, **each} for i, (each, _) in enumerate(members)]
    parsed = config.MixtureConfig.model_validate({"members": given, **settings})
    pairs = zip(parsed.members, members, strict=True)
    return MixReward([Member(each, reward) for each, (_, reward) in pairs], parsed)


def toys(form: str = "relative", **settings: Any) -> MixedObjective:
    """A mixture of 2 · `ToyReward` and the absolute reward of `Squares(30)`."""
    members = ({"weight": 2.0}, ToyReward()), ({"form": "absolute"}, Squares(30.0))
    found = build_objective(mix(*members, **settings), settings_of(form))
    assert isinstance(found, MixedObjective)
    return found


def raw(pixels: Tensor, k_pos: float = 0.0, k_neg: float = 0.0) -> Tensor:
    """The rewards of the members of `toys`, (2, b)."""
    pos, neg = (
        ToyReward().score(pixels.mean((2, 3)), [f"{phrase}. {prompt}" for prompt in PROMPTS])
        for phrase in ("Photo", "Render")
    )
    squares = 30 * pixels.square().mean((1, 2, 3))
    return torch.stack([(1 + k_pos) * pos - (1 + k_neg) * neg, squares])


def slope(objective: Any) -> tuple[Tensor, Any]:
    """The gradient of the reward with respect to the images, and the output."""
    at = images().requires_grad_()
    output = objective(at, BATCH)
    return torch.autograd.grad(output.reward.sum(), at)[0], output


# --- value ----------------------------------------------------------------------------------------


def test_a_mixture_is_a_reward_whose_score_is_the_weighted_sum():
    red = {"label": "red", "weight": 0.5, "reward": {"name": "pixels", "statistic": "redness"}}
    light = {"name": "pixels", "statistic": "brightness", "scale": 3.0}
    members = [red, {"label": "light", "weight": 2.0, "reward": light}]
    reward = load_reward(config.MixtureConfig.model_validate({"members": members}))
    assert isinstance(reward, Reward) and isinstance(reward, MixReward)
    assert reward.differentiable and not reward.reads_prompt
    features, brightness = reward.encode(images()), images().mean((1, 2, 3))
    redness = images()[:, 0].mean((1, 2)) - images()[:, 1:].mean((1, 2, 3))
    each = {label: rows[0] for label, rows in reward.each(features, [PROMPTS]).items()}
    assert list(each) == ["red", "light"]
    torch.testing.assert_close(each["light"], 3 * brightness)
    torch.testing.assert_close(reward.score(features, PROMPTS), 0.5 * redness + 6 * brightness)
    black_box = ({}, ToyReward(differentiable=False))
    mixed = mix(({}, ToyReward()), black_box)
    assert mixed.reads_prompt and not mixed.differentiable


def test_each_member_has_its_own_form_and_phrases():
    own = {"control_phrases": {"positive": ["Glossy"], "negative": ["Dull"]}}
    absolute = {"form": "absolute"}
    table = (
        ({}, ["Photo. a red star", "Render. a red star"]),
        (own, ["Glossy. a red star", "Dull. a red star"]),
        (own | absolute, ["Glossy. a red star"]),
        (absolute, ["a red star"]),
    )
    rewards = [ToyReward() for _ in table]
    members = [(given, reward) for (given, _), reward in zip(table, rewards, strict=True)]
    build_objective(mix(*members), settings_of())(images(), BATCH)
    found = [[texts[0] for texts in reward.prompts] for reward in rewards]
    assert found == [texts for _, texts in table]


def test_the_reward_is_the_weighted_sum_over_running_scales():
    """The first update uses its own values, later ones those before them; older ones count less."""
    objective, weights = toys(), torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    values = [raw(images(step), 0.3, 0.1) for step in range(3)]
    shares = torch.tensor([1.0, 1.0, DECAY, DECAY]).double()
    used = {0: (values[0], shares[:2]), 2: (torch.cat([values[1], values[0]], 1), shares)}
    for step in range(3):
        output = objective(images(step), Batch(step, PROMPTS), 0.3, 0.1)
        if step == 1:
            continue
        rows, share = used[step]
        means = (rows * share).sum(1, keepdim=True) / share.sum()
        stds = (((rows - means).square() * share).sum(1, keepdim=True) / share.sum()).sqrt()
        wanted = (weights * values[step] / stds).sum(0)
        torch.testing.assert_close(output.reward, wanted, rtol=1e-7, atol=0)
        metrics = output.metrics
        assert metrics["reward_m1"] == pytest.approx(float(values[step][1].mean()))
        assert metrics["share_m0"] + metrics["share_m1"] == pytest.approx(metrics["reward"])
        assert {"score_pos_m0", "score_neg_m0", "score_plain_m1"} <= metrics.keys()


def test_raw_rewards_are_added_without_normalization_and_disagreement_is_subtracted():
    rewards = raw(images())
    output = toys(normalise="none")(images(), BATCH)
    torch.testing.assert_close(output.reward, 2 * rewards[0] + rewards[1])
    plain, penalized = (toys(std_penalty=p)(images(), BATCH).reward for p in (0.0, 0.7))
    centred = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)
    wanted = 0.7 * centred.std(0, correction=0)
    torch.testing.assert_close(plain - penalized, wanted, rtol=1e-9, atol=1e-6)


def test_a_member_of_negative_weight_agrees_by_a_low_reward():
    units, weights = torch.rand(2, 5, dtype=torch.float64), torch.tensor([1.0, -0.5]).double()
    against = torch.stack([units[0], -units[0]])
    found = mixed_reward(against, against.mean(1), weights, 3.0)
    torch.testing.assert_close(found, 1.5 * units[0], rtol=0, atol=1e-5)
    assert (mixed_reward(units, units.mean(1), weights, 3.0) < units[0] - 0.5 * units[1]).all()


# --- gradient -------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 0.4])
def test_normalization_gives_every_member_one_norm_and_leaves_the_value(penalty):
    ours, output = slope(toys(gradient_normalization=True, std_penalty=penalty))
    assert output.reward.equal(toys(std_penalty=penalty)(images(), BATCH).reward)

    at = images().requires_grad_()
    rewards = raw(at)
    gradients = torch.stack(
        [torch.autograd.grad(reward.sum(), at, retain_graph=True)[0] for reward in rewards]
    )
    norms = gradients.flatten(2).norm(dim=2).square().mean(1).sqrt()
    scales, means = rewards.std(1, correction=0).detach(), rewards.mean(1).detach()
    units = (rewards.detach() / scales[:, None]).requires_grad_()
    std = ((units - (means / scales)[:, None]).var(0, correction=0) + 1e-12).sqrt()
    slopes = torch.autograd.grad((2 * units[0] + units[1] - penalty * std).sum(), units)[0]
    factors = (norms / scales).mean() / norms
    expected = torch.einsum("m,mb,mbchw->bchw", factors, slopes, gradients)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)  # std from sums of squares
    length = float(gradients[0].flatten(1).norm(dim=1).mean())
    assert output.metrics["gradient_m0"] == pytest.approx(length)


# --- running statistics ---------------------------------------------------------------------------


class Half:
    """Rank 0 of two; `other` holds the values of rank 1."""

    rank, size = 0, 2

    def __init__(self, other: Tensor) -> None:
        self.other = other

    def sum(self, values: Tensor) -> Tensor:
        count = torch.full((2,), float(self.other.shape[1])).double()
        return values + torch.stack([count, self.other.sum(1), self.other.square().sum(1)])

    def gather(self, values: Tensor) -> Tensor:
        raise NotImplementedError


def test_statistics_do_not_depend_on_how_an_update_is_split():
    whole, split, ranks = RunningStats(2), RunningStats(2), RunningStats(2)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        values = torch.rand(2, 6, dtype=torch.float64, generator=generator)
        whole.update(values, step)
        for start in (0, 2, 4):
            split.update(values[:, start : start + 2], step)
        ranks.update(values[:, :3], step, Half(values[:, 3:]))
        for other in (split, ranks):
            torch.testing.assert_close(other.stds, whole.stds, rtol=1e-12, atol=0)
            torch.testing.assert_close(other.means, whole.means, rtol=1e-12, atol=0)


def test_what_never_varies_is_divided_by_one():
    running = RunningStats(3)
    running.update(torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3]]), 0)
    assert running.stds[:2].tolist() == [1.0, 1.0] and running.stds[2] == pytest.approx(0.0816497)


def test_a_resumed_mixture_continues_bit_by_bit():
    normalized = {"gradient_normalization": True, "std_penalty": 0.2}
    first, second = (toys("anchored", **normalized) for _ in range(2))
    for step in range(3):
        first(images(step), Batch(step, PROMPTS))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first(images(9), Batch(3, PROMPTS))  # must not change the stored state
    for each in (first, second):
        each.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for step in range(3, 6):
        ours, theirs = (each(images(step), Batch(step, PROMPTS)) for each in (first, second))
        assert ours.reward.equal(theirs.reward) and ours.metrics == theirs.metrics


def test_each_member_has_its_own_anchor():
    other = {"tolerance": 3.0, "reference_updates": 1}
    mixed = mix(({}, ToyReward()), ({"anchor": other}, ToyReward()))
    objective = build_objective(mixed, settings_of("anchored"))
    assert isinstance(objective, MixedObjective)
    for step in range(2):
        objective(images(step), Batch(step, PROMPTS))
    assert [each.reference.count for each in objective.objectives] == [4, 2]
    assert [each.settings.anchor.tolerance for each in objective.objectives] == [0.05, 3.0]


# --- refusals -------------------------------------------------------------------------------------

CLIP = {"label": "taste", "reward": {"name": "clip", "path": "world:reward"}}
RED = {"label": "red", "form": "absolute", "reward": {"name": "pixels", "statistic": "redness"}}
FAR = {"label": "far", "reward": {"name": "remote", "url": "http://h/score"}}
OWN = {"label": "own", "reward": {"name": "python", "path": "none.py:f"}}
ABSENT = CLIP | {"reward": {"name": "clip", "path": "nowhere"}}
TOKENS = {"positive": ["t.safetensors"], "negative": ["x"]}
BLANK = CLIP | {"control_phrases": {"positive": [" "], "negative": ["x"]}}
NORMALIZED = {"gradient_normalization": True}


def check(members: list[Any], method: dict[str, Any], settings: dict[str, Any]) -> None:
    recipe = {"name": "x", "model": {"architecture": "flux", "path": "world:flux"}}
    recipe |= {"reward": {"name": "mix", "members": members, **settings}}
    recipe |= {"method": {"control_phrases": PHRASES, **method}}
    recipe |= {"data": {"prompts": "world"}, "train": {"num_steps": 1}}
    run = config.RunConfig.model_validate(recipe)
    check_reward(run)
    check_method(run)


@pytest.mark.parametrize(
    ("members", "method", "settings", "message"),
    [
        (
            [CLIP, RED | {"form": "method"}],
            *({}, {}),
            r"members\.1\.reward\.name: pixels ignores .* set reward\.members\.1\.form: abs",
        ),
        ([CLIP, FAR], {}, {}, r"members\.1\.reward\.name remote is a black box"),
        ([ABSENT, RED], {}, {}, r"members\.0\.reward\.path: nowhere: no such folder"),
        ([CLIP, OWN], {}, {}, r"members\.1\.reward\.path: none\.py: no such Python file"),
        ([CLIP, RED], {"name": "flow_grpo"}, NORMALIZED, "true needs a method that differentiates"),
        ([BLANK, RED], {}, {}, r"members\.0\.control_phrases\.positive: .*blank phrase"),
        (
            [CLIP, RED | {"control_phrases": {"positive": ["t.safetensors"]}}],
            *({}, {}),
            r"members\.1\.control_phrases\.positive: t\.safetensors .* pixels",
        ),
        ([CLIP, RED], {"control_phrases": TOKENS}, {}, r"method\.control_phrases\.p.* member"),
    ],
)
def test_members_are_checked_before_the_start(members, method, settings, message):
    with pytest.raises(DirectAlignError, match=message):
        check(members, method, settings)
    check([CLIP, RED], {"name": "flow_grpo", "form": "relative"}, {})


def test_a_member_without_two_phrasings_has_no_relative_form():
    with pytest.raises(DirectAlignError, match=r"members\.0\.control_phrases: form relative comp"):
        given = {"control_phrases": {"positive": ["Photo"]}}
        build_objective(mix((given, ToyReward()), ({}, ToyReward())), settings_of())
