"""SoftPromptConfig control tokens: a planted reward and the embedded one; what the objective asks,
what starts where, and what repeats."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from directalign import config
from directalign.reward_analysis.images import PROBES, Examples, load_examples
from directalign.reward_analysis.soft_prompts import (
    EncodedExamples,
    EncodedSide,
    RelativeText,
    SoftPromptConfig,
    caption_margin,
    encode_examples,
    fit_soft_prompts,
    initial_vectors,
    loss_of,
    mean_of_phrases,
    separation_of,
)
from directalign.rewards.clip import ClipReward
from directalign.rewards.pixel_statistics import PixelReward
from directalign.types import DirectAlignError

WORDS = config.ControlPhrases(
    positive=["Realistic photo", "Natural lighting"],
    negative=["CG render", "Oil painting", "Anime"],
)
FAST = SoftPromptConfig(num_steps=40)


@pytest.fixture(scope="module")
def reward() -> ClipReward:
    return ClipReward.load("world:reward")


@pytest.fixture(scope="module")
def examples() -> Examples:
    return load_examples("world:photo/rest", "--images", count=16, seed=7)


# --- the objective, on planted features: first axis style, second bias, the rest one axis a caption


def planted(captions: tuple[str, ...] = ("a", "b", "c"), style: float = 1.0) -> EncodedSide:
    features = torch.cat(
        [
            torch.full((len(captions), 1), style),
            torch.zeros(len(captions), 1),
            torch.eye(len(captions)),
        ],
        1,
    )
    moved = torch.zeros(len(PROBES), *features.shape)
    moved[..., 1] = 0.5
    return EncodedSide(features, captions, moved)


def gaps(style: float, bias: float, content: float) -> RelativeText:
    """pos − neg as planted weights of the three kinds of axes."""
    return lambda captions: torch.cat(
        [
            torch.full((len(captions), 1), style),
            torch.full((len(captions), 1), bias),
            content * torch.eye(len(captions)),
        ],
        1,
    )


PAIRED = EncodedExamples(planted(style=1.0), planted(style=-1.0), paired=True)


def test_separation_reads_each_axis() -> None:
    found = separation_of(gaps(0.5, 0.25, 0.75), PAIRED, scale=2.0)
    assert (found.style, found.separated, found.content) == (
        pytest.approx(2.0),
        1.0,
        pytest.approx(1.5),
    )
    assert found.bias == pytest.approx(0.25 * 0.5 / 1.0)
    assert separation_of(gaps(-0.5, 0.0, 0.75), PAIRED).separated == 0.0


def test_each_term_pulls_its_axis_alone() -> None:
    weights = torch.tensor([0.01, 0.01, 0.01], requires_grad=True)

    def gradient(content: float, bias: float) -> torch.Tensor:
        loss = loss_of(
            lambda captions: torch.cat(
                [weights[:2].expand(len(captions), 2), weights[2] * torch.eye(len(captions))], 1
            ),
            PAIRED,
            1.0,
            content,
            bias,
        )
        return torch.autograd.grad(loss, weights)[0]

    style = gradient(0.0, 0.0)
    assert style[0] < 0 and style[1] == 0 and style[2] == 0
    content, bias = gradient(1.0, 0.0) - style, gradient(0.0, 1.0) - style
    assert content[2] < 0 and torch.allclose(content[:2], torch.zeros(2), atol=1e-6)
    assert bias[1] > 0 and bias[0] == bias[2] == 0


def test_equal_captions_are_not_told_apart() -> None:
    same = EncodedExamples(planted(("a", "a", "b")), planted(("a", "a", "b"), -1.0), paired=True)

    def read(captions: Sequence[str]) -> torch.Tensor:
        return torch.stack(
            [
                torch.tensor([0.0, 0.0, *([9.0, 0.0, 0.0] if each == "a" else [0.0, 0.0, 9.0])])
                for each in captions
            ]
        )

    other = EncodedSide(torch.eye(5)[[2, 2, 4]], ("a", "a", "b"), torch.zeros(len(PROBES), 3, 5))
    assert separation_of(read, EncodedExamples(other, other, paired=True)).content == pytest.approx(
        9.0
    )
    assert loss_of(
        read, EncodedExamples(other, other, paired=True), 1.0, 1.0, 0.0
    ) == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    assert separation_of(gaps(1.0, 0.0, 0.0), same).content == pytest.approx(0.0)


def test_unpaired_sides_compare_all_pairs() -> None:
    uneven = EncodedExamples(
        planted(("a", "b", "c")), planted(("d", "e"), -1.0).select([0, 1]), paired=False
    )

    def flat(captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]).expand(len(captions), 5)

    wide = EncodedExamples(
        uneven.wanted,
        EncodedSide(
            torch.cat([uneven.unwanted.features, torch.zeros(2, 1)], 1),
            ("d", "e"),
            torch.zeros(len(PROBES), 2, 5),
        ),
        False,
    )
    assert separation_of(flat, wide).style == pytest.approx(2.0)


# --- the fit --------------------------------------------------------------------------------------


def test_tokens_separate_and_say_what_words_do_not(reward: ClipReward, examples: Examples) -> None:
    fitted = fit_soft_prompts(reward, examples, WORDS, FAST)
    assert fitted.start is not None and fitted.held_out == 4
    assert fitted.learned.separated == 1.0 and fitted.learned.style > 0.05
    assert fitted.learned.content > 0.1 > abs(fitted.start.content)
    assert fitted.positive.tokens.shape == fitted.negative.tokens.shape == (2, 64)
    assert (
        fitted.positive.kind == "clip"
        and "16 wanted" in fitted.positive.made
        and "Realistic photo" in fitted.positive.made
    )
    assert not [name for name in reward.soft_prompts.held if "learned" in name]
    assert all(parameter.grad is None for parameter in reward.model.parameters())


def test_the_seed_decides_everything(reward: ClipReward, examples: Examples) -> None:
    short = SoftPromptConfig(num_steps=5, batch_size=8)
    first, again = (
        fit_soft_prompts(reward, examples, config.ControlPhrases(), short) for _ in range(2)
    )
    other = fit_soft_prompts(
        reward,
        examples,
        config.ControlPhrases(),
        SoftPromptConfig(num_steps=5, batch_size=8, seed=1),
    )
    assert torch.equal(first.positive.tokens, again.positive.tokens) and torch.equal(
        first.negative.tokens, again.negative.tokens
    )
    assert not torch.equal(first.positive.tokens, other.positive.tokens) and first.start is None


def test_a_strong_pull_stays_at_the_start(reward: ClipReward, examples: Examples) -> None:
    start = initial_vectors(reward, WORDS, FAST)
    free, held = (
        fit_soft_prompts(
            reward, examples, WORDS, SoftPromptConfig(num_steps=10, stay=stay)
        ).positive.tokens
        - start[0]
        for stay in (0.0, 100.0)
    )
    assert held.norm() < 0.5 * free.norm()


def test_words_alone_give_their_mean(reward: ClipReward) -> None:
    photo, lighting = (
        reward.soft_prompts.embedding_of(words) for words in ("Realistic photo", "Natural lighting")
    )
    assert torch.equal(mean_of_phrases(reward, ["Realistic photo"]).tokens, photo)
    assert torch.allclose(
        mean_of_phrases(reward, ["Realistic photo", "Natural lighting"]).tokens,
        (photo + lighting) / 2,
    )
    assert torch.equal(
        mean_of_phrases(reward, ["Realistic photo"], length=4).tokens, photo[[0, 0, 1, 1]]
    )
    assert torch.allclose(initial_vectors(reward, WORDS, FAST)[0], (photo + lighting) / 2)


def test_seen_images_are_encoded_once_and_probed(reward: ClipReward, examples: Examples) -> None:
    seen = encode_examples(reward, examples)
    assert (
        seen.paired
        and seen.wanted.features.shape == (16, 64)
        and seen.wanted.probed.shape == (len(PROBES), 16, 64)
    )
    tinted = reward.encode(PROBES["red tint"](examples.wanted[:2]))
    assert torch.allclose(seen.wanted.features[:2] + seen.wanted.probed[0, :2], tinted, atol=1e-5)
    assert 0.3 < caption_margin(reward, seen) < 1.0


def test_what_cannot_be_fitted_is_refused(reward: ClipReward, examples: Examples) -> None:
    with pytest.raises(DirectAlignError, match=r"reward\.name: pixels has no text tower"):
        fit_soft_prompts(PixelReward("redness"), examples, WORDS, FAST)
    with pytest.raises(DirectAlignError, match="words of one side only"):
        fit_soft_prompts(reward, examples, config.ControlPhrases(positive=["Photo"]), FAST)
    with pytest.raises(DirectAlignError, match="3 different captions; give at least 8"):
        fit_soft_prompts(reward, load_examples("world", "--images", count=3), WORDS, FAST)
    with pytest.raises(
        DirectAlignError, match="--length: 9 learned tokens, and the reward reads 16"
    ):
        fit_soft_prompts(reward, examples, config.ControlPhrases(), SoftPromptConfig(length=9))
    apart = Examples(
        examples.wanted,
        examples.unwanted,
        examples.wanted_prompts,
        tuple(f"{each} too" for each in examples.unwanted_prompts),
        False,
    )
    assert fit_soft_prompts(reward, apart, WORDS, SoftPromptConfig(num_steps=1)).held_out > 0
