"""HPSv3 on tiny random weights in the published layout: its own inference code's results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from directalign import config
from directalign.rewards import hpsv3, qwen_vl

RECORDED = Path(__file__).parents[1] / "fixtures" / "hpsv3"


def settings(file: Path = RECORDED / "HPSv3.safetensors", **more: Any) -> config.Hpsv3Config:
    return config.Hpsv3Config(
        **{"path": str(file), "processor": str(RECORDED / "processor"), "dtype": "float32", **more}
    )


def recorded() -> tuple[list[Tensor], list[str], Tensor]:
    """Images in [0, 1], prompts, the original's (mu, sigma): two of 448 x 448, two others."""
    stored = load_file(RECORDED / "recorded.safetensors")
    with safe_open(RECORDED / "recorded.safetensors", "pt") as opened:
        prompts = json.loads(opened.metadata()["prompts"])
    shown = [
        *(block(each, 28) for each in stored["blocks"]),
        stored["small"],
        block(stored["coarse"], 40),
    ]
    return [each.permute(2, 0, 1) / 255 for each in shown], prompts, stored["answers"]


def block(levels: Tensor, side: int) -> Tensor:
    return levels.repeat_interleave(side, 0).repeat_interleave(side, 1)


@pytest.fixture(scope="module")
def reward() -> hpsv3.Hpsv3Reward:
    return hpsv3.Hpsv3Reward.from_config(settings())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The file alone, in a folder of its own."""
    return Path(shutil.copy(RECORDED / "HPSv3.safetensors", tmp_path / "HPSv3.safetensors"))


def test_score_is_the_mean_that_the_original_gives(reward: hpsv3.Hpsv3Reward) -> None:
    images, prompts, answers = recorded()
    whole = reward.score(reward.encode(torch.stack(images[:2])), prompts[:2])
    assert torch.allclose(whole, answers[:2, 0], rtol=1e-5, atol=1e-5)
    resized = [
        float(reward.score(reward.encode(image[None]), [prompt]))
        for image, prompt in zip(images[2:], prompts[2:], strict=True)
    ]
    assert resized == pytest.approx(
        answers[2:, 0].tolist(), abs=0.05
    )  # the original rounds to 8 bits after resizing
    scaled = hpsv3.Hpsv3Reward.from_config(settings(scale=0.1))
    assert torch.allclose(
        scaled.score(scaled.encode(torch.stack(images[:2])), prompts[:2]),
        answers[:2, 0] / 10,
        rtol=1e-5,
    )


def test_positions_are_plain_and_the_words_exact(
    reward: hpsv3.Hpsv3Reward, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, prompts, answers = recorded()
    features = reward.encode(images[0][None])
    with monkeypatch.context() as patched:
        patched.setattr(hpsv3, "_plain_positions", lambda asked: None)
        assert abs(float(reward.score(features, prompts[:1])) - float(answers[0, 0])) > 1e-2
    monkeypatch.setattr(hpsv3, "QUESTION", hpsv3.QUESTION.replace(":**  \n", ":**\n"))
    assert abs(float(reward.score(features, prompts[:1])) - float(answers[0, 0])) > 1e-4


def test_every_image_comes_to_256_tokens_or_a_little_less_or_more(
    reward: hpsv3.Hpsv3Reward,
) -> None:
    counts = [
        reward.encode(torch.rand(1, 3, *size)).tokens.shape[1]
        for size in ((448, 448), (720, 720), (64, 64), (300, 500), (100, 120))
    ]
    assert counts[:3] == [256] * 3
    assert all(220 < count < 300 for count in counts)


def test_recomputed_activations_and_bfloat16(reward: hpsv3.Hpsv3Reward) -> None:
    gradients = []
    for judge in (reward, hpsv3.Hpsv3Reward.from_config(settings(gradient_checkpointing=True))):
        x = recorded()[0][2][None].requires_grad_()
        judge.score(judge.encode(x), ["a red star"]).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-6)
    half = hpsv3.Hpsv3Reward.from_config(settings(dtype="bfloat16"))
    assert half.model.dtype == torch.bfloat16 and half.head[0].weight.dtype == torch.float32
    assert half.score(half.encode(x), ["a red star"]).dtype == torch.float32


def newer(name: str) -> str:
    inner = name.removeprefix("model.")
    return (
        name
        if name.startswith(("rm_head.", "lm_head."))
        else f"model.{name}"
        if name.startswith("visual.")
        else f"model.language_model.{inner}"
    )


@pytest.mark.parametrize("naming", [newer, lambda name: name])
def test_both_layouts_load_and_the_vocabularys_head_may_lack(
    naming: Callable[[str], str], copy: Path, reward: hpsv3.Hpsv3Reward
) -> None:
    weights = {
        naming(name): tensor for name, tensor in load_file(copy).items() if name != "lm_head.weight"
    }
    save_file(weights, copy)
    images, prompts, _ = recorded()
    named = hpsv3.Hpsv3Reward.from_config(settings(copy))
    features = torch.stack(images[:2])
    assert torch.equal(
        named.score(named.encode(features), prompts[:2]),
        reward.score(reward.encode(features), prompts[:2]),
    )


def test_settings_may_lie_beside_the_file(copy: Path, reward: hpsv3.Hpsv3Reward) -> None:
    shutil.copytree(RECORDED / "processor", copy.parent, dirs_exist_ok=True)
    beside = hpsv3.Hpsv3Reward.from_config(settings(copy, processor=None))
    image = recorded()[0][0][None]
    assert torch.equal(
        beside.score(beside.encode(image), ["a ring"]),
        reward.score(reward.encode(image), ["a ring"]),
    )


def test_what_follows_the_token_changes_nothing(reward: hpsv3.Hpsv3Reward) -> None:
    features = reward.encode(recorded()[0][0][None])
    asked = reward.chat.tokenize(["before <|Reward|> and a tail"], 256)
    longer = hpsv3.Chat(reward.chat.tokenizer, reward.chat.template).tokenize(
        ["before <|Reward|> and a tail"], 256
    )
    assert (
        longer.ids[:, : asked.ids.shape[1]].equal(asked.ids)
        and longer.ids.shape[1] > asked.ids.shape[1]
    )
    cut = type(longer)(longer.ids, longer.starts, longer.image_tokens, asked.lengths)
    assert torch.allclose(
        qwen_vl.last_hidden_state(reward.model, features, asked),
        qwen_vl.last_hidden_state(reward.model, features, cut),
        atol=1e-6,
    )
