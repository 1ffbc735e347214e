"""SigLIP: the cosine that transformers' own model and processors give, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from directalign import config
from directalign.rewards import load_reward
from directalign.rewards.clip import SiglipReward
from directalign.rewards.common import Preprocessing
from tiny_siglip import siglip_folder

__all__ = ["siglip_folder"]
PROMPTS = ["A photo of a red star", "a blue circle or a square"]


def images(
    seed: int = 0, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (48, 40)
) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def reward(siglip_folder: Path) -> SiglipReward:
    return load_reward(config.SiglipConfig(path=str(siglip_folder)))


@pytest.fixture
def copy(siglip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_folder, tmp_path / "copy"))


@torch.no_grad()
def test_score_is_the_cosine_in_the_logits_of_the_original(
    reward: SiglipReward, siglip_folder: Path
) -> None:
    model, tokenizer = (
        SiglipModel.from_pretrained(siglip_folder),
        AutoTokenizer.from_pretrained(siglip_folder),
    )
    tokens = tokenizer(
        PROMPTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    out = model(pixel_values=reward.preprocessing(images()), input_ids=tokens["input_ids"])
    features = reward.encode(images())
    assert (features - F.normalize(out.image_embeds, dim=-1)).abs().max() < 1e-5
    assert (reward.encode_text(PROMPTS) - F.normalize(out.text_embeds, dim=-1)).abs().max() < 1e-5
    cosines = (out.logits_per_image.diagonal() - model.logit_bias) / model.logit_scale.exp()
    assert torch.allclose(reward.score(features, PROMPTS), cosines, atol=1e-5)
    scaled = load_reward(config.SiglipConfig(path=str(siglip_folder), scale=3.0))
    assert torch.allclose(scaled.score(scaled.encode(images()), PROMPTS), 3 * cosines, atol=1e-5)


def test_case_is_not_heard_even_with_a_tokenizer_that_keeps_it(
    reward: SiglipReward, copy: Path
) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    other = load_reward(config.SiglipConfig(path=str(copy)))
    features = reward.encode(images())
    assert torch.equal(
        other.score(features, [prompt.upper() for prompt in PROMPTS]),
        other.score(features, PROMPTS),
    )


def test_learned_tokens_that_are_words_score_as_the_words(reward: SiglipReward) -> None:
    vectors = reward.soft_prompts.embedding_of(" x")
    reward.soft_prompts.held["made.safetensors"] = vectors.repeat(2, 1)
    with torch.no_grad():
        soft, hard = (
            reward.encode_text(["made.safetensors. a red star"]),
            reward.encode_text(["x x. a red star"]),
        )
    assert torch.allclose(soft, hard, atol=1e-6)
    reward.soft_prompts.held["made.safetensors"] = -vectors.repeat(2, 1)
    with torch.no_grad():
        assert not torch.allclose(
            reward.encode_text(["made.safetensors. a red star"]), hard, atol=1e-3
        )


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(64, 64), (40, 90), (90, 40), (20, 27), (33, 32), (200, 120)])
def test_preprocessing_is_close_to_the_8_bit_original(
    siglip_folder: Path, tmp_path: Path, size: tuple[int, int], resample: int
) -> None:
    settings = json.loads((siglip_folder / "preprocessor_config.json").read_text()) | {
        "resample": resample
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    shown = 0.2 + 0.6 * images(3, size=size)  # theirs cuts overshoot between its two passes
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    theirs = processor(
        images=list((shown * 255).round().to(torch.uint8).numpy()), return_tensors="pt"
    )["pixel_values"]
    ours = Preprocessing.read(tmp_path)(shown)
    assert ours.shape == (2, 3, 32, 32)
    assert ((ours - theirs) * 0.5).abs().max() < 2e-2
