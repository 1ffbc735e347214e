"""Soft control tokens: the loss on planted features, and fits to the embedded reward."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from directalign.config import ControlPhrases
from directalign.reward_analysis.images import PROBES, load_examples
from directalign.reward_analysis.soft_prompts import (
    EncodedExamples,
    EncodedSide,
    RelativeText,
    SoftPromptConfig,
    fit_soft_prompts,
    initial_vectors,
    loss_of,
    mean_of_phrases,
    separation_of,
)
from directalign.rewards.clip import ClipReward
from directalign.rewards.pixel_statistics import PixelReward
from directalign.types import DirectAlignError

PHRASES = ControlPhrases(
    positive=["Realistic photo", "Natural lighting"],
    negative=["CG render", "Oil painting", "Anime"],
)
FAST = SoftPromptConfig(num_steps=40)


@pytest.fixture(scope="module")
def reward():
    return ClipReward.load("world:reward")


@pytest.fixture(scope="module")
def examples():
    return load_examples("world:photo/rest", "--images", count=16, seed=7)


# --- the loss; planted features have the axes (style, bias, one per caption) ----------------------


def planted(captions: Sequence[str], style: float) -> EncodedSide:
    count = len(captions)
    features = torch.cat([torch.tensor([[style, 0.0]]).expand(count, 2), torch.eye(count)], 1)
    probed = torch.zeros(len(PROBES), *features.shape)
    probed[..., 1] = 0.5
    return EncodedSide(features, tuple(captions), probed)


def relative_text(weights: Tensor) -> RelativeText:
    """pos − neg with these weights of (style, bias, own caption)."""

    def found(captions: Sequence[str]) -> Tensor:
        own = weights[2] * torch.eye(len(captions))
        return torch.cat([weights[:2].expand(len(captions), 2), own], 1)

    return found


PAIRED = EncodedExamples(planted("abc", 1.0), planted("abc", -1.0), paired=True)


def test_separation_measures_each_axis():
    found = separation_of(relative_text(torch.tensor([0.5, 0.25, 0.75])), PAIRED, scale=2.0)
    values = found.style, found.separated, found.content, found.bias
    assert values == pytest.approx((2.0, 1.0, 1.5, 0.25 * 0.5))
    swapped = separation_of(relative_text(torch.tensor([-0.5, 0.0, 0.75])), PAIRED)
    assert swapped.separated == 0.0
    unwanted = EncodedSide(-torch.eye(5)[[0, 0]], ("d", "e"), torch.zeros(len(PROBES), 2, 5))
    sides = EncodedExamples(planted("abc", 1.0), unwanted, paired=False)
    found = separation_of(lambda captions: torch.eye(5)[[0] * len(captions)], sides)
    assert found.style == pytest.approx(2.0)  # all combinations


def test_each_loss_term_has_a_gradient_along_its_axis_only():
    weights = torch.tensor([0.01, 0.01, 0.01], requires_grad=True)

    def gradient(content: float, bias: float) -> Tensor:
        loss = loss_of(relative_text(weights), PAIRED, 1.0, content, bias)
        return torch.autograd.grad(loss, weights)[0]

    style = gradient(0.0, 0.0)
    assert style[0] < 0 and style[1] == 0 and style[2] == 0
    content, bias = gradient(1.0, 0.0) - style, gradient(0.0, 1.0) - style
    assert content[2] < 0 and content[:2].abs().max() < 1e-6
    assert bias[1] > 0 and bias[0] == bias[2] == 0


@pytest.fixture(scope="module")
def few():
    """Eight captions, the fewest that can be split."""
    return load_examples("world:photo/rest", "--images", count=8, seed=7)


def test_tokens_separate_style_and_content(reward, examples):
    fitted = fit_soft_prompts(reward, examples, PHRASES, FAST)
    assert fitted.start is not None and fitted.held_out == 4
    assert fitted.learned.separated == 1.0 and fitted.learned.style > 0.05
    assert fitted.learned.content > 0.1 > abs(fitted.start.content)
    assert fitted.positive.tokens.shape == fitted.negative.tokens.shape == (2, 64)
    assert fitted.positive.kind == "clip"
    assert "16 wanted" in fitted.positive.made and "Realistic photo" in fitted.positive.made
    assert not [name for name in reward.soft_prompts.held if "learned" in name]
    assert all(parameter.grad is None for parameter in reward.model.parameters())


def test_the_seed_determines_the_tokens(reward, few):
    short = SoftPromptConfig(num_steps=2, batch_size=4)
    first, again, other = (
        fit_soft_prompts(reward, few, ControlPhrases(), replace(short, seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.positive.tokens, again.positive.tokens)
    assert torch.equal(first.negative.tokens, again.negative.tokens)
    assert not torch.equal(first.positive.tokens, other.positive.tokens) and first.start is None


def test_without_a_fit_the_tokens_are_the_mean_of_the_phrases(reward):
    photo, lighting = (reward.soft_prompts.embedding_of(each) for each in PHRASES.positive)
    assert torch.equal(mean_of_phrases(reward, PHRASES.positive[:1]).tokens, photo)
    longer = mean_of_phrases(reward, PHRASES.positive[:1], length=4).tokens
    assert torch.equal(longer, photo[[0, 0, 1, 1]])
    mean = (photo + lighting) / 2
    assert torch.allclose(mean_of_phrases(reward, PHRASES.positive).tokens, mean)
    assert torch.allclose(initial_vectors(reward, PHRASES, FAST)[0], mean)


def test_unusable_inputs_are_refused(reward, few):
    one_side, three = ControlPhrases(positive=["Photo"]), load_examples("world", "", count=3)
    long = SoftPromptConfig(length=9)
    for given, images, phrases, settings, message in (
        (PixelReward("redness"), few, PHRASES, FAST, r"reward\.name: pixels has no text tower"),
        (reward, few, one_side, FAST, "words of one side only"),
        (reward, three, PHRASES, FAST, "3 different captions; give at least 8"),
        (reward, few, ControlPhrases(), long, "--length: 9 learned tokens, and the reward reads"),
    ):
        with pytest.raises(DirectAlignError, match=message):
            fit_soft_prompts(given, images, phrases, settings)
    other = tuple(f"{each} too" for each in few.unwanted_prompts)
    apart = replace(few, unwanted_prompts=other, paired=False)
    assert fit_soft_prompts(reward, apart, PHRASES, SoftPromptConfig(num_steps=1)).held_out > 0
