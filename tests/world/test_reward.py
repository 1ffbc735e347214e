import pytest
import torch
from torch import nn

from directalign.rewards.clip import ClipReward
from directalign.toyworld.assets import resolve
from directalign.toyworld.scenes import STYLES
from tools.build_toyworld.reward import train_reward
from tools.build_toyworld.reward_card import measure, read, see
from tools.build_toyworld.spec import SPECS, shortened


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_training_writes_a_complete_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.build_toyworld.reward.measure", lambda clip, tokenizer, spec: {})
    spec = shortened(SPECS["world"])
    clip = train_reward(tmp_path, spec, "reward")
    reward = ClipReward.load(str(tmp_path / "reward"))
    images = torch.rand(2, 3, 64, 64, generator=seeded(8))
    prompts = ["a red star on a navy background", "Anime. a blue ring on a white background"]
    expected = (see(clip, images)[1] * read(clip, reward.tokenizer, prompts)).sum(1)
    assert torch.allclose(reward.score(reward.encode(images), prompts), expected, atol=5e-3)


@pytest.fixture(scope="module", params=["reward", "second_reward"])
def facts(request):
    reward = ClipReward.load(str(resolve(f"world:{request.param}")))
    assert isinstance(reward.model, nn.Module)
    return request.param, measure(reward.model, reward.tokenizer, SPECS["world"], count=48)


def test_shipped_rewards_measure_content_and_style_with_opposite_biases(facts):
    name, measured = facts
    for kind, least in {"color": 0.97, "background": 0.97, "shape": 0.75, "style": 0.9}.items():
        assert measured[f"{kind} retrieval"] >= least
    assert all(measured[f"pos - neg ranks photo above {style}"] >= 0.95 for style in STYLES[1:])
    assert 0.7 <= measured["cos(pos, neg)"] <= 0.95
    assert measured["tint, share that cancels"] >= 0.85
    if name == "reward":
        assert measured["tint, least over words"] >= 0.05
    else:
        assert measured["tint, most over words"] <= -0.03
