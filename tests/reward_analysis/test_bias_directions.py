"""Directions of planted shifts: recovered, without what is wanted, with the right shares."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from directalign import config
from directalign.reward_analysis import bias_directions as bias
from directalign.reward_analysis.bias_directions import direction_stats, fit
from directalign.reward_analysis.images import Examples
from directalign.types import DirectAlignError, Images, PerSample

WIDTH, COUNT = 12, 40
PROMPTS = tuple(f"prompt {i}" for i in range(COUNT))


def unit(*axes: int, width: int = WIDTH) -> Tensor:
    """The sum of unit vectors, at length 1."""
    return F.normalize(torch.eye(width, dtype=torch.float64)[list(axes)].sum(0, keepdim=True))


def noise(seed: int, size: float = 0.01, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(COUNT, width, generator=generator, dtype=torch.float64)


class MeanColor:
    """Features: mean color. "warm" rewards red, "fresh" green, the prompt's length blue."""

    name, sees, reads_prompt, differentiable = "color", "pixels", True, True

    def encode(self, images: Images) -> Tensor:
        return images.mean((2, 3))

    def score(self, features: Tensor, prompts: Sequence[str]) -> PerSample:
        rows = [[float("warm" in p), float("fresh" in p), 0.1 * len(p)] for p in prompts]
        return (features * torch.tensor(rows).to(features)).sum(-1)


def test_a_planted_shared_direction_is_recovered():
    before = noise(0, 1.0)
    rows = fit(before, before + 0.5 * unit(3) + noise(1))
    assert rows.shape == (1, WIDTH) and (rows @ unit(3).T).item() > 0.999


def test_the_wanted_shift_is_removed_first():
    before = noise(0, 1.0)
    after = before + 0.5 * unit(3) + 0.8 * unit(5) + noise(1)
    rows = fit(before, after, components=3, wanted=unit(5))
    assert (rows @ unit(5).T).abs().max() < 1e-9 and (rows[:1] @ unit(3).T).item() > 0.999
    found = direction_stats(MeanColor(), before, after, rows[:1], unit(5), None)
    assert found.wanted == pytest.approx(0.64 / 0.89, abs=0.02)
    assert found.captured == pytest.approx(0.25 / 0.89, abs=0.02)
    assert found.shared > 0.99 and found.explained is None


def test_the_share_of_the_gain_along_the_directions():
    red = unit(0, width=3)
    before = F.normalize(noise(0, 1.0, 3).abs(), dim=-1)
    after = F.normalize(before + red, dim=-1)
    found = direction_stats(MeanColor(), before, after, red, None, ["warm"] * COUNT)
    assert found.gain is not None and found.projected_gain is not None
    assert found.gain > 0.1 and found.projected_gain < found.gain
    assert found.explained == pytest.approx(1 - found.projected_gain / found.gain)
    back = direction_stats(MeanColor(), after, before, red, None, ["warm"] * COUNT)
    assert back.explained is None


@pytest.mark.parametrize(
    ("shift", "options", "message"),
    [
        (0 * unit(3), {}, "moved in no common direction"),
        (unit(3), {"wanted": unit(3)}, "moved in no common direction"),
        (unit(3), {"components": 3}, "--components 3: the images moved in 1 directions only"),
    ],
)
def test_too_small_shifts_are_refused(shift, options, message):
    with pytest.raises(DirectAlignError, match=message):
        fit(noise(0, 1.0), noise(0, 1.0) + shift, **options)


def test_text_gradients_of_a_linear_score():
    found = bias.text_gradients(MeanColor(), ["ab", "abcd"], "warm", torch.zeros(1, 3))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0, 0.8], [1.0, 0.0, 1.0]]))
    found = bias.text_gradients(MeanColor(), ["ab"], "", torch.zeros(1, 3))
    assert torch.allclose(found, torch.tensor([[0.0, 0.0, 0.2]]))


def test_the_wanted_difference_of_phrases_and_of_examples():
    phrases = config.ControlPhrases(positive=["warm", "warm"], negative=["fresh"])
    row = bias.wanted_from_phrases(MeanColor(), PROMPTS, phrases, torch.zeros(1, 3))
    expected = F.normalize(torch.tensor([[1.0, -1.0, -0.1]], dtype=torch.float64))
    assert row.shape == (1, 3) and (row @ expected.T).abs().item() == pytest.approx(1)
    wanted, unwanted = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    wanted[:, 1] = 0.5
    examples = Examples(wanted, unwanted, PROMPTS[:4], PROMPTS[:4], True)
    row = bias.wanted_from_examples(MeanColor(), examples)
    assert torch.allclose(row.abs(), unit(1, width=3))


def test_images_of_several_sizes_are_encoded_in_order():
    images = [torch.full((3, size, size), 0.1 * size) for size in (4, 4, 8, 4)]
    expected = torch.tensor([0.4, 0.4, 0.8, 0.4])
    assert torch.allclose(bias.encode_images(MeanColor(), images)[:, 0], expected)

    class NoVectors(MeanColor):
        def encode(self, images: Images) -> Tensor:
            return images

    with pytest.raises(DirectAlignError, match="does not have one feature vector per image"):
        bias.encode_images(NoVectors(), torch.rand(2, 3, 8, 8))
