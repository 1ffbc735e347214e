"""A planted common shift is found again, what is wanted is left in, and the shares say how much of
each there was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from directalign import config
from directalign.reward_analysis.bias_directions import (
    direction_stats,
    encode_images,
    fit,
    orthonormal_union,
    remove_rows,
    span,
    text_gradients,
    wanted_from_examples,
    wanted_from_phrases,
)
from directalign.reward_analysis.images import Examples
from directalign.types import DirectAlignError, Images, PerSample

WIDTH, COUNT = 12, 40
PROMPTS = tuple(f"prompt {i}" for i in range(COUNT))


def unit(*places: int) -> Tensor:
    """The sum of unit vectors, at length 1."""
    return F.normalize(
        torch.eye(WIDTH, dtype=torch.float64)[list(places)].sum(0, keepdim=True), dim=-1
    )


def noise(seed: int, size: float = 0.01) -> Tensor:
    return size * torch.randn(
        COUNT, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class MeanColour:
    """Features are the mean colour; each phrase pulls towards one channel, and the prompt's length
    towards blue."""

    name, reads_prompt, differentiable = "colour", True, True

    def encode(self, images: Images) -> Tensor:
        return images.mean((2, 3))

    def score(self, features: Tensor, prompts: Sequence[str]) -> PerSample:
        text = torch.tensor(
            [
                [float("warm" in prompt), float("fresh" in prompt), 0.1 * len(prompt)]
                for prompt in prompts
            ]
        ).to(features)
        return (features * text).sum(-1)


def test_a_planted_shared_direction_is_recovered() -> None:
    before = noise(0, 1.0)
    rows = fit(before, before + 0.5 * unit(3) + noise(1))
    assert rows.shape == (1, WIDTH) and (rows @ unit(3).T).item() > 0.999


def test_further_components_are_the_strongest_of_the_rest() -> None:
    strength = torch.randn(
        COUNT, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    before = noise(0, 1.0)
    rows = fit(
        before,
        before + unit(3) + 0.3 * (strength - strength.mean()) * unit(7) + noise(1),
        components=2,
    )
    assert (rows @ rows.T - torch.eye(2)).abs().max() < 1e-12
    assert (rows[1:] @ unit(7).T).abs().item() > 0.99


def test_what_is_wanted_is_left_in() -> None:
    before = noise(0, 1.0)
    after = before + 0.5 * unit(3) + 0.8 * unit(5) + noise(1)
    rows = fit(before, after, components=3, wanted=unit(5))
    assert (rows @ unit(5).T).abs().max() < 1e-9 and (rows[:1] @ unit(3).T).item() > 0.999
    found = direction_stats(MeanColour(), before, after, rows[:1], unit(5), None)
    assert found.wanted == pytest.approx(0.64 / 0.89, abs=0.02) and found.captured == pytest.approx(
        0.25 / 0.89, abs=0.02
    )
    assert found.shared > 0.99 and found.explained is None


def test_an_individual_shift_is_not_shared() -> None:
    before = noise(0, 1.0)
    rows = fit(before, before + noise(1, 0.5))
    assert direction_stats(
        MeanColour(), before, before + noise(1, 0.5), rows, None, None
    ).shared == pytest.approx(1 / COUNT, abs=0.04)


def test_the_gain_that_lies_along_the_direction_is_told() -> None:
    reward = MeanColour()
    prompts = ["warm"] * COUNT
    before = F.normalize(
        torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        dim=-1,
    )
    after = F.normalize(before + torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), dim=-1)
    red = torch.eye(3, dtype=torch.float64)[:1]
    found = direction_stats(reward, before, after, red, None, prompts)
    assert (
        found.gain is not None and found.projected_gain is not None and found.explained is not None
    )
    assert found.gain > 0.1 and found.explained == pytest.approx(
        1 - found.projected_gain / found.gain
    )
    assert found.projected_gain < 1e-9, "a reward that does not see red gains nothing from it"
    assert direction_stats(reward, after, before, red, None, prompts).explained is None, (
        "nothing was gained"
    )


def test_images_that_did_not_move_are_refused() -> None:
    before = noise(0, 1.0)
    with pytest.raises(DirectAlignError, match="moved in no common direction"):
        fit(before, before)
    with pytest.raises(DirectAlignError, match="moved in no common direction"):
        fit(before, before + unit(3), wanted=unit(3))
    with pytest.raises(
        DirectAlignError, match="--components 3: the images moved in 1 directions only"
    ):
        fit(before, before + unit(3), components=3)


def test_pulls_are_what_a_linear_score_reads() -> None:
    like = torch.zeros(1, 3)
    assert torch.allclose(
        text_gradients(MeanColour(), ["ab", "abcd"], "warm", like),
        torch.tensor([[1.0, 0.0, 0.8], [1.0, 0.0, 1.0]]),
    )
    assert torch.allclose(
        text_gradients(MeanColour(), ["ab"], "", like), torch.tensor([[0.0, 0.0, 0.2]])
    )


def test_the_wanted_difference_of_words_and_of_examples() -> None:
    words = config.ControlPhrases(positive=["warm", "warm"], negative=["fresh"])
    row = wanted_from_phrases(MeanColour(), PROMPTS, words, torch.zeros(1, 3))
    assert row.shape == (1, 3), "two equal pairs span one direction"
    assert (
        row @ F.normalize(torch.tensor([[1.0, -1.0, -0.1]], dtype=torch.float64), dim=-1).T
    ).abs().item() == pytest.approx(1)
    wanted, unwanted = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    wanted[:, 1] = 0.5
    row = wanted_from_examples(
        MeanColour(), Examples(wanted, unwanted, PROMPTS[:4], PROMPTS[:4], True)
    )
    assert torch.allclose(row.abs(), torch.eye(3, dtype=torch.float64)[1:2])


def test_directions_of_several_sources_become_one_set() -> None:
    rows = orthonormal_union([unit(0), unit(0, 1), unit(1, 0), unit(4)])
    assert rows.shape == (3, WIDTH) and (rows @ rows.T - torch.eye(3)).abs().max() < 1e-12
    assert remove_rows(unit(1), rows).norm() < 1e-12
    assert span(torch.cat([unit(0), unit(0, 1), unit(1)])).shape == (2, WIDTH)


def test_images_of_several_sizes_are_seen_in_order() -> None:
    images = [torch.full((3, size, size), 0.1 * size) for size in (4, 4, 8, 4)]
    assert torch.allclose(
        encode_images(MeanColour(), images)[:, 0], torch.tensor([0.4, 0.4, 0.8, 0.4])
    )


def test_a_reward_without_feature_vectors_is_refused() -> None:
    class Whole(MeanColour):
        def encode(self, images: Images) -> Tensor:
            return images

    with pytest.raises(DirectAlignError, match="does not have one feature vector per image"):
        encode_images(Whole(), torch.rand(2, 3, 8, 8))
