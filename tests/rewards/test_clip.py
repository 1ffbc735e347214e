from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from directalign.rewards.clip import ClipReward

PROMPTS = ["Realistic photo. a red star on a navy background", "a blue ring on an olive background"]


@pytest.fixture
def reward(clip_folder: Path) -> ClipReward:
    return ClipReward.load(str(clip_folder))


def images(
    seed: int = 1, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (48, 40)
) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_score_is_the_cosine_that_transformers_gives(reward: ClipReward, clip_folder: Path) -> None:
    pixels = reward.preprocessing(images())
    tokens = reward.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
    out = reward.model(pixel_values=pixels, **tokens)
    expected = (F.normalize(out.image_embeds, dim=-1) * F.normalize(out.text_embeds, dim=-1)).sum(
        -1
    )
    assert torch.allclose(reward.score(reward.encode(images()), PROMPTS), expected, atol=1e-6)
    scaled = ClipReward.load(str(clip_folder), scale=5.0)
    assert torch.allclose(scaled.score(scaled.encode(images()), PROMPTS), 5 * expected, atol=1e-5)


def test_a_phrase_is_read_once_and_alone_or_in_company_the_same(
    reward: ClipReward, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = reward._prompts.encode
    monkeypatch.setattr(
        reward._prompts,
        "encode",
        lambda phrases: read.extend(dict.fromkeys(phrases)) or encode(phrases),
    )
    features = reward.encode(images())
    first = reward.score(features, PROMPTS)
    swapped = reward.score(features.flip(0), PROMPTS[::-1])
    twice = reward.score(features, [PROMPTS[0]] * 2)
    assert read == PROMPTS
    assert torch.equal(swapped.flip(0), first)
    assert torch.equal(twice[:1], first[:1])
    fresh = ClipReward.load(str(clip_folder))
    assert torch.allclose(fresh.score(features[1:], PROMPTS[1:]), first[1:], atol=1e-6)


def test_the_cache_stays_bounded(reward: ClipReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward._prompts, "limit", 3)
    features = reward.encode(images())[:1]
    scores = {
        f"a {word}": reward.score(features, [f"a {word}"])
        for word in ("star", "ring", "circle", "square", "triangle")
    }
    assert list(reward._prompts.cached) == ["a circle", "a square", "a triangle"]
    assert torch.allclose(reward.score(features, ["a star"]), scores["a star"], atol=1e-6)
