"""HPSv3 on tiny random weights in the published file's layout: its own inference code's answers (fixtures/hpsv3), gradient, files."""

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
from transformers import PreTrainedModel

from directalign import config
from directalign.interfaces import Reward
from directalign.rewards import hpsv3, qwen_vl
from directalign.types import DirectAlignError
from hub_downloads import download_hub, point_at
from tiny_vlm import write_vlm

RECORDED = Path(__file__).parents[1] / "fixtures" / "hpsv3"


def settings(file: Path = RECORDED / "HPSv3.safetensors", **more: Any) -> config.Hpsv3Config:
    return config.Hpsv3Config(**{"path": str(file), "processor": str(RECORDED / "processor"), "dtype": "float32", **more})


def recorded() -> tuple[list[Tensor], list[str], Tensor]:
    """Images (3, h, w) in [0, 1], prompts, and the original's (mu, sigma): two of 448 x 448, one smaller, one larger."""
    stored = load_file(RECORDED / "recorded.safetensors")
    with safe_open(RECORDED / "recorded.safetensors", "pt") as opened:
        prompts = json.loads(opened.metadata()["prompts"])
    shown = [*(block(each, 28) for each in stored["blocks"]), stored["small"], block(stored["coarse"], 40)]
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


def test_is_a_reward(reward: hpsv3.Hpsv3Reward) -> None:
    assert isinstance(reward, Reward)
    assert (reward.name, reward.reads_prompt, reward.differentiable) == ("hpsv3", True, True)


def test_score_is_the_mean_that_the_original_gives(reward: hpsv3.Hpsv3Reward) -> None:
    images, prompts, answers = recorded()
    whole = reward.score(reward.encode(torch.stack(images[:2])), prompts[:2])
    assert torch.allclose(whole, answers[:2, 0], rtol=1e-5, atol=1e-5)
    resized = [float(reward.score(reward.encode(image[None]), [prompt])) for image, prompt in zip(images[2:], prompts[2:], strict=True)]
    assert resized == pytest.approx(answers[2:, 0].tolist(), abs=0.05)  # the original rounds to 8 bits after resizing
    scaled = hpsv3.Hpsv3Reward.from_config(settings(scale=0.1))
    assert torch.allclose(scaled.score(scaled.encode(torch.stack(images[:2])), prompts[:2]), answers[:2, 0] / 10, rtol=1e-5)


def test_positions_are_plain_and_the_words_exact(reward: hpsv3.Hpsv3Reward, monkeypatch: pytest.MonkeyPatch) -> None:
    images, prompts, answers = recorded()
    features = reward.encode(images[0][None])
    with monkeypatch.context() as patched:
        patched.setattr(hpsv3, "_plain_positions", lambda asked: None)
        assert abs(float(reward.score(features, prompts[:1])) - float(answers[0, 0])) > 1e-2
    monkeypatch.setattr(hpsv3, "QUESTION", hpsv3.QUESTION.replace(":**  \n", ":**\n"))
    assert abs(float(reward.score(features, prompts[:1])) - float(answers[0, 0])) > 1e-4


def test_every_image_comes_to_256_tokens_or_a_little_less_or_more(reward: hpsv3.Hpsv3Reward) -> None:
    counts = [reward.encode(torch.rand(1, 3, *size)).tokens.shape[1] for size in ((448, 448), (720, 720), (64, 64), (300, 500), (100, 120))]
    assert counts[:3] == [256] * 3
    assert all(220 < count < 300 for count in counts)


def test_alone_and_in_company_the_same(reward: hpsv3.Hpsv3Reward) -> None:
    images, prompts, _ = recorded()
    together = reward.score(reward.encode(torch.stack(images[:2])), prompts[:2])
    alone = [reward.score(reward.encode(image[None]), [prompt]) for image, prompt in zip(images[:2], prompts[:2], strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_gradient_to_the_pixels_equals_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = hpsv3.Hpsv3Reward.from_config(settings())
    reward.model.double()
    reward.head.double()
    monkeypatch.setattr(torch, "float32", torch.float64)  # the library computes norms and rotations in float32, whatever the weights
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    x = (0.25 + 0.5 * torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    reward.score(reward.encode(x), ["a red star"]).sum().backward()
    assert x.grad is not None
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        ends = [reward.score(reward.encode(x + sign * step * way), ["a red star"]).sum() for sign in (1, -1)]
    assert torch.allclose((ends[0] - ends[1]) / (2 * step), (x.grad * way).sum(), rtol=1e-6, atol=1e-7)


def test_weights_are_frozen_and_stay_as_they_are(reward: hpsv3.Hpsv3Reward) -> None:
    parts = (reward.model, reward.head)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    x = torch.rand(2, 3, 30, 40, requires_grad=True)
    (-reward.score(reward.encode(x), ["a red star", "a ring"])).sum().backward()
    assert x.grad is not None and (x.grad.abs().flatten(1).sum(1) > 0).all()
    for part, kept in zip(parts, before, strict=True):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in part.parameters())
        assert all(torch.equal(tensor, kept[name]) for name, tensor in part.state_dict().items())
        assert not part.training


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
    return name if name.startswith(("rm_head.", "lm_head.")) else f"model.{name}" if name.startswith("visual.") else f"model.language_model.{inner}"


@pytest.mark.parametrize("naming", [newer, lambda name: name])
def test_both_layouts_load_and_the_vocabularys_head_may_lack(naming: Callable[[str], str], copy: Path, reward: hpsv3.Hpsv3Reward) -> None:
    weights = {naming(name): tensor for name, tensor in load_file(copy).items() if name != "lm_head.weight"}
    save_file(weights, copy)
    images, prompts, _ = recorded()
    named = hpsv3.Hpsv3Reward.from_config(settings(copy))
    features = torch.stack(images[:2])
    assert torch.equal(named.score(named.encode(features), prompts[:2]), reward.score(reward.encode(features), prompts[:2]))


def test_file_and_reader_come_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "published"
    published.mkdir()
    shutil.copy(RECORDED / "HPSv3.safetensors", published)
    with download_hub() as served:
        served.publish("MizzenAI/HPSv3", published)
        served.publish("Qwen/Qwen2-VL-7B-Instruct", RECORDED / "processor", model_dot_safetensors=b"not to be read")
        point_at(served.url, tmp_path, monkeypatch)
        given = settings(Path("MizzenAI/HPSv3/HPSv3.safetensors"), processor="Qwen/Qwen2-VL-7B-Instruct")
        hpsv3.Hpsv3Reward.check(given, online=True)
        assert not any("safetensors" in name for name in served.fetched)
        far = hpsv3.Hpsv3Reward.from_config(given)
        assert [name for name in served.fetched if "safetensors" in name] == ["HPSv3.safetensors"]
        with pytest.raises(DirectAlignError, match=r"reward\.path: MizzenAI/HPSv3/other\.safetensors: .*has no file other\.safetensors"):
            hpsv3.Hpsv3Reward.check(settings(Path("MizzenAI/HPSv3/other.safetensors")), online=True)
    images, prompts, answers = recorded()
    assert float(far.score(far.encode(images[0][None]), prompts[:1])) == pytest.approx(float(answers[0, 0]), rel=1e-5)


def refused(file: Path, match: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Both `load` and, without a model in memory, `check` say so."""
    with pytest.raises(DirectAlignError, match=match):
        hpsv3.Hpsv3Reward.from_config(settings(file, **more))
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "from_pretrained", None)
        patched.setattr(hpsv3, "read_weights", None)
        with pytest.raises(DirectAlignError, match=match):
            hpsv3.Hpsv3Reward.check(settings(file, **more))


def test_a_sound_file_is_checked_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    monkeypatch.setattr(hpsv3, "read_weights", None)
    hpsv3.Hpsv3Reward.check(settings())


@pytest.mark.parametrize("kept", [0, 100, -50])
def test_a_truncated_file_is_refused_by_name(kept: int, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.write_bytes(copy.read_bytes()[:kept])
    refused(copy, r"reward\.path: .*HPSv3\.safetensors: not a complete file of weights", monkeypatch)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("rm_head.3.weight", None, r"lacks rm_head\.3\.weight"),
        ("rm_head.5.bias", (1,), r"has in another shape rm_head\.5\.bias"),
        ("visual.blocks.0.norm1.weight", None, r"lacks visual\.blocks\.0\.norm1\.weight"),
        ("model.layers.7.mlp.up_proj.weight", (4, 4), r"has the unknown language_model\.layers\.7\.mlp\.up_proj\.weight"),
        ("model.embed_tokens.weight", (700, 16), r"reward\.processor: .*the model knows 700"),
    ],
)
def test_a_file_of_another_model_is_refused(name: str, shape: tuple[int, ...] | None, match: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(copy)
    weights.pop(name, None)
    save_file(weights if shape is None else weights | {name: torch.zeros(shape)}, copy)
    refused(copy, match, monkeypatch)


def test_its_reader_is_a_qwen2_vl(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(copy, r"reward\.processor: missing, .* set processor: Qwen/Qwen2-VL-7B-Instruct", monkeypatch, processor=None)
    refused(copy, r"reward\.processor: .*holds no Qwen2-VL", monkeypatch, processor=str(write_vlm(tmp_path / "other")))
    refused(tmp_path, r"reward\.path: .*name the file of weights", monkeypatch)
    refused(tmp_path / "none.safetensors", r"reward\.path: .*none\.safetensors: no such file", monkeypatch)


def test_settings_may_lie_beside_the_file(copy: Path, reward: hpsv3.Hpsv3Reward) -> None:
    shutil.copytree(RECORDED / "processor", copy.parent, dirs_exist_ok=True)
    beside = hpsv3.Hpsv3Reward.from_config(settings(copy, processor=None))
    image = recorded()[0][0][None]
    assert torch.equal(beside.score(beside.encode(image), ["a ring"]), reward.score(reward.encode(image), ["a ring"]))


def test_what_follows_the_token_changes_nothing(reward: hpsv3.Hpsv3Reward) -> None:
    features = reward.encode(recorded()[0][0][None])
    asked = reward.chat.tokenize(["before <|Reward|> and a tail"], 256)
    longer = hpsv3.Chat(reward.chat.tokenizer, reward.chat.template).tokenize(["before <|Reward|> and a tail"], 256)
    assert longer.ids[:, : asked.ids.shape[1]].equal(asked.ids) and longer.ids.shape[1] > asked.ids.shape[1]
    cut = type(longer)(longer.ids, longer.starts, longer.image_tokens, asked.lengths)
    assert torch.allclose(qwen_vl.last_hidden_state(reward.model, features, asked), qwen_vl.last_hidden_state(reward.model, features, cut), atol=1e-6)
