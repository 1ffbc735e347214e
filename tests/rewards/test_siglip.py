"""SigLIP: the cosine that transformers' own model and processors give, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from directalign import config
from directalign.interfaces import Reward
from directalign.rewards import check_reward, load_reward
from directalign.rewards.clip import SiglipReward
from directalign.rewards.common import Preprocessing
from directalign.types import DirectAlignError
from hub_downloads import download_hub, point_at
from tiny_siglip import siglip_folder

__all__ = ["siglip_folder"]
PROMPTS = ["A photo of a red star", "a blue circle or a square"]


def images(seed: int = 0, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (48, 40)) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def reward(siglip_folder: Path) -> SiglipReward:
    return load_reward(config.SiglipConfig(path=str(siglip_folder)))


@pytest.fixture
def copy(siglip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_folder, tmp_path / "copy"))


def test_is_a_reward(reward: SiglipReward) -> None:
    assert isinstance(reward, Reward)
    assert (reward.name, reward.reads_prompt, reward.differentiable) == ("siglip", True, True)


@torch.no_grad()
def test_score_is_the_cosine_in_the_logits_of_the_original(reward: SiglipReward, siglip_folder: Path) -> None:
    model, tokenizer = SiglipModel.from_pretrained(siglip_folder), AutoTokenizer.from_pretrained(siglip_folder)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    out = model(pixel_values=reward.preprocessing(images()), input_ids=tokens["input_ids"])
    features = reward.encode(images())
    assert (features - F.normalize(out.image_embeds, dim=-1)).abs().max() < 1e-5
    assert (reward.encode_text(PROMPTS) - F.normalize(out.text_embeds, dim=-1)).abs().max() < 1e-5
    cosines = (out.logits_per_image.diagonal() - model.logit_bias) / model.logit_scale.exp()
    assert torch.allclose(reward.score(features, PROMPTS), cosines, atol=1e-5)
    scaled = load_reward(config.SiglipConfig(path=str(siglip_folder), scale=3.0))
    assert torch.allclose(scaled.score(scaled.encode(images()), PROMPTS), 3 * cosines, atol=1e-5)


def test_case_is_not_heard_even_with_a_tokenizer_that_keeps_it(reward: SiglipReward, copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    other = load_reward(config.SiglipConfig(path=str(copy)))
    features = reward.encode(images())
    assert torch.equal(other.score(features, [prompt.upper() for prompt in PROMPTS]), other.score(features, PROMPTS))


def test_a_phrase_alone_or_in_company_is_the_same_and_long_ones_are_cut(reward: SiglipReward, siglip_folder: Path) -> None:
    features = reward.encode(images())
    together = reward.score(features, PROMPTS)
    fresh = load_reward(config.SiglipConfig(path=str(siglip_folder)))
    assert torch.allclose(fresh.score(features[1:], PROMPTS[1:]), together[1:], atol=1e-6)
    assert torch.isfinite(reward.score(features, ["a red star " * 50, "x" * 10_000])).all()


def test_learned_tokens_that_are_words_score_as_the_words(reward: SiglipReward) -> None:
    vectors = reward.soft_prompts.embedding_of(" x")
    reward.soft_prompts.held["made.safetensors"] = vectors.repeat(2, 1)
    with torch.no_grad():
        soft, hard = reward.encode_text(["made.safetensors. a red star"]), reward.encode_text(["x x. a red star"])
    assert torch.allclose(soft, hard, atol=1e-6)
    reward.soft_prompts.held["made.safetensors"] = -vectors.repeat(2, 1)
    with torch.no_grad():
        assert not torch.allclose(reward.encode_text(["made.safetensors. a red star"]), hard, atol=1e-3)


def test_gradient_to_the_pixels_equals_finite_differences(reward: SiglipReward) -> None:
    before = {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}
    reward.model.double()
    x = images(dtype=torch.float64).requires_grad_()
    reward.score(reward.encode(x), PROMPTS).sum().backward()
    assert x.grad is not None
    for seed in range(3):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = [reward.score(reward.encode(x.detach() + sign * 1e-5 * way), PROMPTS).sum() for sign in (1, -1)]
        assert torch.allclose((ends[0] - ends[1]) / 2e-5, (x.grad * way).sum(), rtol=1e-6, atol=1e-10)
    reward.model.float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in reward.model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.model.parameters())


def test_recomputing_changes_nothing(reward: SiglipReward, siglip_folder: Path) -> None:
    frugal = load_reward(config.SiglipConfig(path=str(siglip_folder), gradient_checkpointing=True))
    grads = []
    for each in (reward, frugal):
        x = images().requires_grad_()
        each.score(each.encode(x), PROMPTS).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(64, 64), (40, 90), (90, 40), (20, 27), (33, 32), (200, 120)])
def test_preprocessing_is_close_to_the_8_bit_original(siglip_folder: Path, tmp_path: Path, size: tuple[int, int], resample: int) -> None:
    settings = json.loads((siglip_folder / "preprocessor_config.json").read_text()) | {"resample": resample}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    shown = 0.2 + 0.6 * images(3, size=size)  # theirs cuts overshoot between its two passes
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    theirs = processor(images=list((shown * 255).round().to(torch.uint8).numpy()), return_tensors="pt")["pixel_values"]
    ours = Preprocessing.read(tmp_path)(shown)
    assert ours.shape == (2, 3, 32, 32)
    assert ((ours - theirs) * 0.5).abs().max() < 2e-2


def test_a_repository_on_the_hub(siglip_folder: Path, reward: SiglipReward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.SiglipConfig(path="maker/siglip")
    with download_hub() as served:
        served.publish("maker/siglip", siglip_folder, pytorch_model_dot_bin=b"pickled")
        point_at(served.url, tmp_path, monkeypatch)
        check_reward(settings)
        check_reward(settings, online=True)
        assert not any(name.endswith(".safetensors") for name in served.fetched)
        fetched = load_reward(settings)
        assert "pytorch_model.bin" not in served.fetched
    assert torch.equal(fetched.score(fetched.encode(images()), PROMPTS), reward.score(reward.encode(images()), PROMPTS))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "spiece.model"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    shown = "tokenizer.json" if name == "spiece.model" else name
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=shown.replace(".", r"\.")):
            ask(config.SiglipConfig(path=str(copy)))


@pytest.mark.parametrize("kept", [0, 200, -100])
def test_truncated_weights_are_refused_by_name(copy: Path, kept: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"held\.path: .*model\.safetensors: not a complete safetensors file"):
            ask(config.SiglipConfig(path=str(copy)), key="held")


def test_missing_tensors_and_other_architectures_are_named(copy: Path, clip_folder: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights.pop("vision_model.head.probe")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DirectAlignError, match=r"weights lack vision_model\.head\.probe"):
        load_reward(config.SiglipConfig(path=str(copy)))
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match="holds a model of type clip; give the folder of a transformers SiglipModel"):
            ask(config.SiglipConfig(path=str(clip_folder)))
        with pytest.raises(DirectAlignError, match=r"open_clip\.safetensors: SigLIP needs a transformers folder"):
            ask(config.SiglipConfig(path="open_clip.safetensors"))


def test_naflex_is_refused_by_name(copy: Path) -> None:
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(told | {"model_type": "siglip2"}))
    with pytest.raises(DirectAlignError, match="holds a model of type siglip2"):
        check_reward(config.SiglipConfig(path=str(copy)))
