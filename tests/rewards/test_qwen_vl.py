"""Qwen VL and HPSv3 on tiny random models: scores of the originals, layouts, answers, settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from directalign import config
from directalign.rewards.hpsv3 import Hpsv3Reward
from directalign.rewards.qwen_vl import VlmReward
from recorded_rewards import FIXTURES
from rewards.cases import refused, scores_of
from tiny_rewards import TEMPLATE, VLMS, original_score, write_vlm

PROMPTS = [
    "a red star",
    "Realistic photo. a red star on sandy background, and much more of it than in the first",
]
HPSV3, PLUS_PLUS = FIXTURES / "hpsv3", FIXTURES / "hpsv3_plus_plus"


def levels(height: int = 36, width: int = 60) -> Tensor:
    """Two random 8-bit images (2, height, width, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, height, width, 3), generator=generator, dtype=torch.uint8)


def images(height: int = 36, width: int = 60) -> Tensor:
    return levels(height, width).permute(0, 3, 1, 2) / 255


def vlm(folder: Path, **more: Any) -> VlmReward:
    settings = {"path": str(folder), "dtype": "float32"}
    return VlmReward.from_config(config.QwenVLConfig.model_validate(settings | more))


def hps(file: Path = HPSV3 / "HPSv3.safetensors", **more: Any) -> Hpsv3Reward:
    settings = {"path": str(file), "processor": str(HPSV3 / "processor"), "dtype": "float32"}
    return Hpsv3Reward.from_config(config.Hpsv3Config.model_validate(settings | more))


@pytest.fixture
def reward(vlm_folder):
    return vlm(vlm_folder)


@pytest.fixture
def copy(vlm_folder, tmp_path):
    return Path(shutil.copytree(vlm_folder, tmp_path / "copy"))


# --- P(yes) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VLMS)
def test_the_score_is_that_of_the_librarys_model_and_processor(kind, tmp_path):
    folder = write_vlm(tmp_path / kind, kind)
    reward = vlm(folder)
    questions = [reward.settings.question.replace("{prompt}", prompt) for prompt in PROMPTS]
    for size in ((36, 60), (48, 24)):
        pictures = [Image.fromarray(each.numpy()) for each in levels(*size)]
        found, pixels = scores_of(reward, images(*size), PROMPTS), reward.pixels(images(*size))
        same = original_score(reward.model, folder, pictures, questions, pixels)
        rounded = original_score(reward.model, folder, pictures, questions)  # images to 8 bits
        assert torch.allclose(found, same, atol=1e-5)
        assert torch.allclose(found, rounded, atol=0.05)
        assert (found > 0).all() and (found < 1).all()


def test_answers_dtype_and_size_are_settings(vlm_folder, reward):
    score = scores_of(reward, images(), PROMPTS)
    odds = vlm(vlm_folder, answer="log_odds", scale=2.0)
    half_odds = scores_of(odds, images(), PROMPTS) / 2
    assert torch.allclose(half_odds.sigmoid(), score, atol=1e-6)
    swapped = vlm(vlm_folder, yes="No", no="Yes")
    assert torch.allclose(scores_of(swapped, images(), PROMPTS), 1 - score, atol=1e-6)
    half, x = vlm(vlm_folder, dtype="bfloat16"), images().requires_grad_()
    rounded = scores_of(half, x, PROMPTS)
    rounded.sum().backward()
    assert half.model.dtype == torch.bfloat16 and rounded.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.float32 and (x.grad != 0).any()
    assert torch.allclose(rounded, score, atol=0.1)
    tokens = [
        each.encode(images(64, 64)).tokens.shape[1]
        for each in (vlm(vlm_folder, max_pixels=16 * 16), reward)
    ]
    assert tokens == [4, 36]


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_both_published_layouts_load(layout, copy, reward):
    weights = load_file(copy / "model.safetensors")
    save_file(renamed(weights, layout), copy / "model.safetensors", metadata={"format": "pt"})
    expected = scores_of(reward, images(), PROMPTS)
    assert torch.equal(scores_of(vlm(copy), images(), PROMPTS), expected)


def renamed(weights: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Weights with the names of older or newer transformers."""
    names = {}
    for name in weights:
        plain = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        inner = plain.removeprefix("model.")
        if layout == "newer" and inner.startswith("visual."):
            plain = f"model.{inner}"
        elif layout == "newer" and not inner.startswith(("lm_head.", "rm_head.")):
            plain = f"model.language_model.{inner}"
        names[plain] = weights[name]
    return names


def test_the_tokenizers_own_template_is_the_default(copy, reward):
    (copy / "chat_template.json").unlink()
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert vlm(copy).chat.render("a red star") == reward.chat.render("a red star")


def test_a_prompt_must_not_hold_the_image_token(reward):
    with refused(r"holds <\|image_pad\|>"):
        scores_of(reward, images(), ["<|image_pad|>", "a red star"])


# --- HPSv3 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hps_reward():
    return hps()


@pytest.fixture
def file(tmp_path):
    """The file of weights in a folder of its own."""
    return Path(shutil.copy(HPSV3 / "HPSv3.safetensors", tmp_path))


def recorded() -> tuple[list[Tensor], list[str], Tensor]:
    """Images in [0, 1], prompts, the original's (mu, sigma): two of 448 x 448, two others."""
    stored = load_file(HPSV3 / "recorded.safetensors")
    with safe_open(HPSV3 / "recorded.safetensors", "pt") as opened:
        prompts = json.loads(opened.metadata()["prompts"])
    large = [block(each, 28) for each in stored["blocks"]]
    pictures = [*large, stored["small"], block(stored["coarse"], 40)]
    return [each.permute(2, 0, 1) / 255 for each in pictures], prompts, stored["answers"]


def block(levels: Tensor, side: int, first: int = 0) -> Tensor:
    return levels.repeat_interleave(side, first).repeat_interleave(side, first + 1)


def test_hpsv3_scores_are_the_means_of_the_original(hps_reward):
    given, prompts, answers = recorded()
    exact = scores_of(hps_reward, torch.stack(given[:2]), prompts)
    assert torch.allclose(exact, answers[:2, 0], rtol=1e-5, atol=1e-5)
    for number in (2, 3):  # resized, after which the original rounds to 8 bits
        found = scores_of(hps_reward, given[number][None], prompts[number:])
        assert found.item() == pytest.approx(answers[number, 0].item(), abs=0.05)


def test_hpsv3_in_bfloat16_has_a_float32_head():
    half = hps(dtype="bfloat16")
    assert (
        half.model.dtype == torch.bfloat16 and half.head["rm_head"][0].weight.dtype == torch.float32
    )
    assert scores_of(half, torch.rand(1, 3, 50, 90), PROMPTS).dtype == torch.float32


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_hpsv3_in_both_layouts_without_the_language_head(layout, file, hps_reward):
    weights = renamed(load_file(file), layout)
    del weights["lm_head.weight"]
    save_file(weights, file)
    shutil.copytree(HPSV3 / "processor", file.parent, dirs_exist_ok=True)
    x, other = torch.rand(1, 3, 50, 90), hps(file, processor=None)  # settings beside the file
    assert torch.equal(scores_of(other, x, PROMPTS), scores_of(hps_reward, x, PROMPTS))


@pytest.mark.parametrize(("row", "iteration"), [(0, 0.0), (1, 0.7)])
def test_hpsv3_plus_plus_is_the_original(row, iteration):
    """A capability for each image, which is the original's for batches of one image."""
    file, processor = PLUS_PLUS / "hpsv3++.pth", str(PLUS_PLUS / "processor")
    reward = hps(file, processor=processor, iteration=iteration)
    (given, prompts, _), original = recorded(), load_file(PLUS_PLUS / "recorded.safetensors")
    answers = original["answers"][row, :, 0]
    blocks = torch.stack([each[:, ::28, ::28] for each in given[:2]]).requires_grad_()
    exact = scores_of(reward, torch.stack([block(each, 28, 1) for each in blocks]), prompts)
    assert torch.allclose(exact, answers[:2], rtol=1e-6, atol=1e-5)
    if iteration:
        exact.sum().backward()
        torch.testing.assert_close(blocks.grad, original["gradients"], rtol=1e-5, atol=1e-5)
    for number in (2, 3):  # resized twice, each time rounded to 8 bits by the original
        found = scores_of(reward, given[number][None], prompts[number:])
        assert found.item() == pytest.approx(answers[number].item(), abs=0.1)


@pytest.mark.parametrize("iteration", [-0.1, 1.5])
def test_an_iteration_is_between_0_and_1(iteration):
    with pytest.raises(ValidationError, match="iteration"):
        hps(iteration=iteration)
