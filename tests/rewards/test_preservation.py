"""The masked distance from the source, by hand; and how rewards get the source of each image."""

import pytest
import torch

from directalign import config
from directalign.methods.objective import build_objective
from directalign.rewards import load_reward
from directalign.rewards.black_box import PythonReward
from directalign.rewards.common import image_features
from directalign.rewards.mixture import Member, MixReward
from directalign.types import Batch, Sources
from rewards.cases import refused

PROMPTS = ("make it red", "remove the star")


def drawn(count: int = 2) -> tuple[torch.Tensor, Sources]:
    """Images and their sources in float64, the left half of the first masked."""
    generator = torch.Generator().manual_seed(1)
    images, edited = torch.rand(2, count, 3, 4, 6, generator=generator, dtype=torch.float64)
    masks = torch.zeros(count, 1, 4, 6, dtype=torch.float64)
    masks[0, :, :, :3] = 1
    return images, Sources(edited, masks)


def preservation(scale: float = 1.0):
    return load_reward(config.PreservationConfig(scale=scale))


def test_the_mean_square_outside_the_mask_and_no_gradient_inside():
    images, sources = drawn()
    reward, at = preservation(scale=3.0), images.clone().requires_grad_()
    found = reward.score(image_features(reward, at, sources), PROMPTS)
    squares = (images - sources.images).square()
    expected = -3 * torch.stack([squares[0, :, :, 3:].mean(), squares[1].mean()])
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert at.grad is not None and not at.grad[0, :, :, :3].any()
    slope = -6 * (images - sources.images)
    torch.testing.assert_close(at.grad[0, :, :, 3:], slope[0, :, :, 3:] / 36)
    torch.testing.assert_close(at.grad[1], slope[1] / 72)
    same = reward.encode(sources.images, sources)
    assert not same.any()
    assert not reward.encode(images, Sources(sources.images, torch.ones_like(sources.masks))).any()


def test_every_image_of_a_prompt_is_compared_with_the_source_of_the_prompt():
    images, sources = drawn(4)
    batch = Batch(0, PROMPTS, sources=sources[:2])
    objective = build_objective(preservation(), config.ObjectiveConfig())
    each = sources[:2].repeated(2)
    expected = preservation().score(preservation().encode(images, each), PROMPTS * 2)
    torch.testing.assert_close(objective(images, batch).reward, expected)
    with torch.no_grad():  # scored in slices
        torch.testing.assert_close(objective(images, batch).reward, expected)


def mixture(*rewards, **settings):
    members = [
        config.MemberConfig.model_validate(
            {
                "label": f"r{n}",
                "weight": weight,
                "form": "absolute",
                "reward": {"name": "preservation"},
            }
        )
        for n, (weight, _) in enumerate(rewards)
    ]
    mix = config.MixtureConfig(members=members, normalise="none", **settings)
    pairs = zip(members, rewards, strict=True)
    return MixReward([Member(member, reward) for member, (_, reward) in pairs], mix)


@pytest.mark.parametrize("normalized", [False, True])
def test_in_a_mixture_it_is_weighted_like_any_member(normalized):
    images, sources = drawn()
    red = load_reward(config.PixelStatisticsConfig(statistic="redness"))
    mix = mixture((1.0, red), (0.25, preservation()), gradient_normalization=normalized)
    expected = red.encode(images) - preservation().encode(images, sources) / 4
    batch = Batch(0, PROMPTS, sources=sources)
    found = build_objective(mix, config.ObjectiveConfig())(images.clone().requires_grad_(), batch)
    torch.testing.assert_close(found.reward, expected)
    torch.testing.assert_close(mix.score(image_features(mix, images, sources), PROMPTS), expected)


class Brighter:
    """A user's reward: how much brighter than the source."""

    reads_sources = True

    def encode(self, images, sources):
        return (images - sources.images).mean((1, 2, 3))

    def score(self, features, prompts):
        return features


def test_a_reward_of_the_user_s_own_gets_the_sources():
    images, sources = drawn()
    reward = PythonReward(Brighter(), differentiable=True)
    found = reward.score(image_features(reward, images, sources), PROMPTS)
    expected = (images.float() - sources.images).mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


def test_without_sources_it_is_refused():
    images, _ = drawn()
    with refused(r"reward\.name preservation .* data\.edits"):
        build_objective(preservation(), config.ObjectiveConfig())(images, Batch(0, PROMPTS))
