"""The score, its gradient and its files, on tiny random models in the published layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from directalign import config
from directalign.rewards import qwen_vl
from directalign.types import DirectAlignError
from tiny_clip import clip_folder
from tiny_vlm import MODELS, TEMPLATE, original_score, vlm_folder, write_vlm

__all__ = ["clip_folder", "vlm_folder"]

PROMPTS = [
    "a red star",
    "Realistic photo. a red star on sandy background, and much more of it than in the first",
]


def settings(folder: Path, **more: Any) -> config.QwenVLConfig:
    return config.QwenVLConfig(**{"path": str(folder), "dtype": "float32", **more})


def pictures(
    height: int = 36, width: int = 60, seed: int = 0, count: int = 2
) -> tuple[Tensor, list[Image.Image]]:
    """Random 8-bit images, as tensors in [0, 1] and as the library takes them."""
    levels = torch.randint(
        0,
        256,
        (count, height, width, 3),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )
    return levels.permute(0, 3, 1, 2) / 255, [Image.fromarray(each.numpy()) for each in levels]


@pytest.fixture
def reward(vlm_folder: Path) -> qwen_vl.VlmReward:
    return qwen_vl.VlmReward.from_config(settings(vlm_folder))


@pytest.fixture
def copy(vlm_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vlm_folder, tmp_path / "copy"))


@pytest.mark.parametrize("kind", MODELS)
def test_score_is_what_the_librarys_model_answers_through_its_own_processor(
    kind: str, tmp_path: Path
) -> None:
    folder = write_vlm(tmp_path / kind, kind)
    reward = qwen_vl.VlmReward.from_config(settings(folder))
    questions = [reward.settings.question.replace("{prompt}", prompt) for prompt in PROMPTS]
    for height, width in ((36, 60), (48, 24)):
        images, shown = pictures(height, width)
        mine = reward.score(reward.encode(images), PROMPTS)
        assert torch.allclose(
            mine,
            original_score(reward.model, folder, shown, questions, reward.pixels(images)),
            atol=1e-5,
        )
        assert torch.allclose(
            mine, original_score(reward.model, folder, shown, questions), atol=0.05
        )  # its images are rounded to 8 bits
        assert (mine > 0).all() and (mine < 1).all()


def test_log_odds_are_those_of_the_probability_and_scale_is_a_factor(
    vlm_folder: Path, reward: qwen_vl.VlmReward
) -> None:
    images, _ = pictures()
    odds = qwen_vl.VlmReward.from_config(settings(vlm_folder, answer="log_odds", scale=2.0))
    assert torch.allclose(
        (odds.score(odds.encode(images), PROMPTS) / 2).sigmoid(),
        reward.score(reward.encode(images), PROMPTS),
        atol=1e-6,
    )


def test_the_answers_may_change_sides(vlm_folder: Path, reward: qwen_vl.VlmReward) -> None:
    images, _ = pictures()
    turned = qwen_vl.VlmReward.from_config(settings(vlm_folder, yes="No", no="Yes"))
    assert torch.allclose(
        turned.score(turned.encode(images), PROMPTS),
        1 - reward.score(reward.encode(images), PROMPTS),
        atol=1e-6,
    )


def test_several_phrasings_share_one_look(reward: qwen_vl.VlmReward) -> None:
    looks: list[int] = []
    reward.model.model.visual.register_forward_pre_hook(lambda *_: looks.append(1))
    features = reward.encode(pictures()[0])
    scores = [
        reward.score(features, [f"{phrase}. {prompt}" for prompt in PROMPTS])
        for phrase in ("Realistic photo", "CG render")
    ]
    assert len(looks) == 1
    assert (scores[0] - scores[1]).abs().min() > 1e-4


def test_weights_in_bfloat16_score_about_the_same_in_float32(
    vlm_folder: Path, reward: qwen_vl.VlmReward
) -> None:
    half, x = (
        qwen_vl.VlmReward.from_config(config.QwenVLConfig(path=str(vlm_folder))),
        pictures()[0].requires_grad_(),
    )
    score = half.score(half.encode(x), PROMPTS)
    score.sum().backward()
    assert half.model.dtype == torch.bfloat16 and score.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.float32 and (x.grad != 0).any()
    assert torch.allclose(score, reward.score(reward.encode(x), PROMPTS), atol=0.1)


def test_larger_images_may_be_shrunk(vlm_folder: Path, reward: qwen_vl.VlmReward) -> None:
    small = qwen_vl.VlmReward.from_config(settings(vlm_folder, max_pixels=16 * 16))
    images, _ = pictures(64, 64)
    assert small.encode(images).tokens.shape[1] == 4
    assert reward.encode(images).tokens.shape[1] == 36


def older(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def newer(name: str) -> str:
    plain = older(name).removeprefix("model.")
    return (
        plain
        if plain.startswith("lm_head.")
        else f"model.{plain}"
        if plain.startswith("visual.")
        else f"model.language_model.{plain}"
    )


@pytest.mark.parametrize("naming", [older, newer])
def test_both_published_layouts_load(
    naming: Callable[[str], str], copy: Path, reward: qwen_vl.VlmReward
) -> None:
    weights = {
        naming(name): tensor for name, tensor in load_file(copy / "model.safetensors").items()
    }
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    images, _ = pictures()
    named = qwen_vl.VlmReward.from_config(settings(copy))
    assert torch.equal(
        named.score(named.encode(images), PROMPTS), reward.score(reward.encode(images), PROMPTS)
    )


def test_the_tokenizers_own_template_serves_where_there_is_no_other(
    copy: Path, reward: qwen_vl.VlmReward
) -> None:
    (copy / "chat_template.json").unlink()
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert qwen_vl.VlmReward.from_config(settings(copy)).chat.render(
        "a red star"
    ) == reward.chat.render("a red star")


def test_a_prompt_holds_no_image(reward: qwen_vl.VlmReward) -> None:
    with pytest.raises(DirectAlignError, match=r"holds <\|image_pad\|>"):
        reward.score(reward.encode(pictures()[0]), ["<|image_pad|>", "a red star"])
