from __future__ import annotations

import pytest
import torch
from torch import nn

from directalign.rewards.clip import ClipReward
from directalign.toyworld.assets import resolve
from directalign.toyworld.scenes import STYLE_WORDS, STYLES, Scenes, draw_scenes, render
from tools.build_toyworld.reward import Training, _fits, _loss, draw_captions, train_reward
from tools.build_toyworld.reward_card import measure, read, retouch, see
from tools.build_toyworld.session import Budget
from tools.build_toyworld.tokenizers import clip_tokenizer


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_retouch_warms_cools_and_smooths():
    images = 0.3 + 0.4 * torch.rand(4, 3, 64, 64, generator=seeded(1))
    none = torch.zeros(4)
    assert torch.equal(retouch(images, none, none), images)
    cast = (retouch(images, none + 0.1, none) - images).mean((0, 2, 3))
    assert torch.allclose(cast, torch.tensor([0.1, -0.05, -0.05]), atol=1e-6)
    smooth = retouch(images, none, none + 1)
    assert smooth.diff(dim=-1).abs().mean() < 0.5 * images.diff(dim=-1).abs().mean()


def test_a_quarter_of_the_captions_carry_their_own_style_word():
    scenes = draw_scenes(4000, seeded(2))
    texts, words = draw_captions(scenes, seeded(3))
    assert abs((words >= 0).float().mean() - 0.25) < 0.03
    for text, word, style, plain in zip(
        texts, words.tolist(), scenes.style.tolist(), scenes.captions(), strict=True
    ):
        phrases = STYLE_WORDS[STYLES[style]]
        assert text in ([plain] if word < 0 else [f"{phrase}. {plain}" for phrase in phrases])


def test_a_caption_fits_where_content_agrees_and_no_style_word_lies():
    one = draw_scenes(1, seeded(4))
    scenes = Scenes(
        one.color.expand(3), one.shape.expand(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    )
    assert _fits(scenes, torch.tensor([-1, 1, 0])).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, False, True],
    ]


def test_the_loss_trains_everything_but_the_scale():
    tokenizer = clip_tokenizer()
    training = Training(tokenizer)
    scenes = draw_scenes(4, seeded(5))
    loss = _loss(training, render(scenes, seeded(6)), scenes, seeded(7))
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, p in training.named_parameters() if p.grad is None] == [
        "clip.logit_scale"
    ]


def test_training_writes_a_complete_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.build_toyworld.reward.POOL", 8)
    monkeypatch.setattr("tools.build_toyworld.reward.measure", lambda clip, tokenizer: {})
    clip = train_reward(tmp_path, budget=Budget(steps=2, batch=4, learning_rate=1e-3))
    reward = ClipReward.load(str(tmp_path / "reward"))
    images = torch.rand(2, 3, 64, 64, generator=seeded(8))
    prompts = ["a red star on a navy background", "Anime. a blue ring on a white background"]
    expected = (see(clip, images)[1] * read(clip, reward.tokenizer, prompts)).sum(1)
    assert torch.allclose(reward.score(reward.encode(images), prompts), expected, atol=5e-3)


@pytest.fixture(scope="module", params=["reward", "second_reward"])
def facts(request):
    reward = ClipReward.load(str(resolve(f"world:{request.param}")))
    assert isinstance(reward.model, nn.Module)
    return request.param, measure(reward.model, reward.tokenizer, count=48)


def test_shipped_rewards_measure_content_and_style_with_opposite_biases(facts):
    name, measured = facts
    for kind, least in {"color": 0.97, "background": 0.97, "shape": 0.75, "style": 0.9}.items():
        assert measured[f"{kind} retrieval"] >= least
    assert all(measured[f"pos - neg ranks photo above {style}"] >= 0.95 for style in STYLES[1:])
    assert 0.7 <= measured["cos(pos, neg)"] <= 0.95
    assert measured["red tint, share that cancels"] >= 0.85
    if name == "reward":
        assert measured["red tint, least over words"] >= 0.05
    else:
        assert measured["red tint, most over words"] <= -0.03
