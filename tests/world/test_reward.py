import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPModel

from directalign.config import ClipConfig, LatentClipConfig
from directalign.config.load import load_run
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.toyworld.assets import resolve
from directalign.toyworld.scenes import STYLES, draw_scenes, render
from tools.build_toyworld import latent_reward
from tools.build_toyworld.reward import train_reward
from tools.build_toyworld.reward_card import measure, read, retouch, see
from tools.build_toyworld.spec import SPECS, shortened

REWARDS = LatentClipConfig(path="world:reward_latent"), ClipConfig(path="world:reward")


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


def test_the_latent_rewards_training_writes_a_complete_folder(tmp_path):
    spec = shortened(SPECS["world"])
    vae = AutoencoderKL.from_pretrained(resolve("world:flux") / "vae")
    teacher = CLIPModel.from_pretrained(resolve("world:reward"))
    student = latent_reward.train_latent_reward(tmp_path, spec, vae, teacher)
    reward = load_reward(LatentClipConfig(path=str(tmp_path / "reward_latent")))
    latents = torch.randn(2, 16, 8, 8, generator=seeded(8))
    ours = latent_reward.embed(student, latents)
    assert torch.allclose(reward.encode(latents), ours, atol=5e-3)
    text = student.text_projection.weight, teacher.text_projection.weight
    assert torch.allclose(*text, atol=1e-3)


def test_the_shipped_latent_reward_prefers_what_the_pixel_reward_does():
    flux = load_model(load_run("world_srpo").model, "cpu")
    latent, pixel = (load_reward(each) for each in REWARDS)
    scenes = draw_scenes(32, seeded(3))
    images = torch.cat([render(scenes.with_style(style), seeded(4)) for style in STYLES])
    tinted = retouch(images, tint=0.1)
    ours = [latent.encode(flux.encode_image(each)) for each in (images, tinted)]
    theirs = [pixel.encode(each) for each in (images, tinted)]
    assert torch.cosine_similarity(ours[0], theirs[0]).mean() >= 0.9
    prompts = scenes.captions() * len(STYLES)
    gaps = [pixel.score(each, prompts) for each in (*ours, *theirs)]
    assert (gaps[1] - gaps[0]).mean() >= 0.5 * (gaps[3] - gaps[2]).mean() > 0
    styled = [[f"{word}. {text}" for text in prompts] for word in ("Realistic photo", "CG render")]
    pos, neg = (latent.score(ours[0], texts).view(len(STYLES), -1) for texts in styled)
    assert ((pos - neg)[0] > (pos - neg)[1]).float().mean() >= 0.9


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
