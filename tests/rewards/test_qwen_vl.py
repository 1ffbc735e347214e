"""The score, its gradient and its files, on tiny random models in the published layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from directalign import config
from directalign.interfaces import Reward
from directalign.rewards import qwen_vl
from directalign.types import DirectAlignError
from hub_downloads import download_hub, point_at
from tiny_clip import clip_folder
from tiny_vlm import MODELS, TEMPLATE, original_score, vlm_folder, write_vlm

__all__ = ["clip_folder", "vlm_folder"]

PROMPTS = ["a red star", "Realistic photo. a red star on sandy background, and much more of it than in the first"]


def settings(folder: Path, **more: Any) -> config.QwenVLConfig:
    return config.QwenVLConfig(**{"path": str(folder), "dtype": "float32", **more})


def pictures(height: int = 36, width: int = 60, seed: int = 0, count: int = 2) -> tuple[Tensor, list[Image.Image]]:
    """Random 8-bit images, as tensors in [0, 1] and as the library takes them."""
    levels = torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return levels.permute(0, 3, 1, 2) / 255, [Image.fromarray(each.numpy()) for each in levels]


@pytest.fixture
def reward(vlm_folder: Path) -> qwen_vl.VlmReward:
    return qwen_vl.VlmReward.from_config(settings(vlm_folder))


@pytest.fixture
def copy(vlm_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vlm_folder, tmp_path / "copy"))


def test_is_a_reward(reward: qwen_vl.VlmReward) -> None:
    assert isinstance(reward, Reward)
    assert (reward.name, reward.reads_prompt, reward.differentiable) == ("vlm", True, True)


@pytest.mark.parametrize("kind", MODELS)
def test_score_is_what_the_librarys_model_answers_through_its_own_processor(kind: str, tmp_path: Path) -> None:
    folder = write_vlm(tmp_path / kind, kind)
    reward = qwen_vl.VlmReward.from_config(settings(folder))
    questions = [reward.settings.question.replace("{prompt}", prompt) for prompt in PROMPTS]
    for height, width in ((36, 60), (48, 24)):
        images, shown = pictures(height, width)
        mine = reward.score(reward.encode(images), PROMPTS)
        assert torch.allclose(mine, original_score(reward.model, folder, shown, questions, reward.pixels(images)), atol=1e-5)
        assert torch.allclose(mine, original_score(reward.model, folder, shown, questions), atol=0.05)  # its images are rounded to 8 bits
        assert (mine > 0).all() and (mine < 1).all()


def test_log_odds_are_those_of_the_probability_and_scale_is_a_factor(vlm_folder: Path, reward: qwen_vl.VlmReward) -> None:
    images, _ = pictures()
    odds = qwen_vl.VlmReward.from_config(settings(vlm_folder, answer="log_odds", scale=2.0))
    assert torch.allclose((odds.score(odds.encode(images), PROMPTS) / 2).sigmoid(), reward.score(reward.encode(images), PROMPTS), atol=1e-6)


def test_the_answers_may_change_sides(vlm_folder: Path, reward: qwen_vl.VlmReward) -> None:
    images, _ = pictures()
    turned = qwen_vl.VlmReward.from_config(settings(vlm_folder, yes="No", no="Yes"))
    assert torch.allclose(turned.score(turned.encode(images), PROMPTS), 1 - reward.score(reward.encode(images), PROMPTS), atol=1e-6)


def test_alone_and_in_company_the_same(reward: qwen_vl.VlmReward) -> None:
    images, _ = pictures()
    together = reward.score(reward.encode(images), PROMPTS)
    alone = [reward.score(reward.encode(images[place : place + 1]), PROMPTS[place : place + 1]) for place in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_several_phrasings_share_one_look(reward: qwen_vl.VlmReward) -> None:
    looks: list[int] = []
    reward.model.model.visual.register_forward_pre_hook(lambda *_: looks.append(1))
    features = reward.encode(pictures()[0])
    scores = [reward.score(features, [f"{phrase}. {prompt}" for prompt in PROMPTS]) for phrase in ("Realistic photo", "CG render")]
    assert len(looks) == 1
    assert (scores[0] - scores[1]).abs().min() > 1e-4


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("answer", ["probability", "log_odds"])
def test_gradient_to_the_pixels_equals_finite_differences(kind: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = qwen_vl.VlmReward.from_config(settings(write_vlm(tmp_path / kind, kind), answer=answer))
    reward.model.double()
    monkeypatch.setattr(torch, "float32", torch.float64)  # the library computes norms and rotations in float32, whatever the weights
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    x = (0.25 + 0.5 * pictures()[0].double()).requires_grad_()
    reward.score(reward.encode(x), PROMPTS).sum().backward()
    assert x.grad is not None
    for seed in range(3):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            ends = [reward.score(reward.encode(x + sign * step * way), PROMPTS).sum() for sign in (1, -1)]
        assert torch.allclose((ends[0] - ends[1]) / (2 * step), (x.grad * way).sum(), rtol=1e-6, atol=1e-7)


def test_weights_are_frozen_and_stay_as_they_are(reward: qwen_vl.VlmReward) -> None:
    before = {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}
    x = pictures()[0].requires_grad_()
    (1 - reward.score(reward.encode(x), PROMPTS)).sum().backward()
    assert x.grad is not None and (x.grad.abs().flatten(1).sum(1) > 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in reward.model.state_dict().items())
    assert not reward.model.training


def test_recomputed_activations_give_the_same_gradient_and_less_is_kept(vlm_folder: Path) -> None:
    kept, gradients = [], []
    for choice in (False, True):
        reward, sizes = qwen_vl.VlmReward.from_config(settings(vlm_folder, gradient_checkpointing=choice)), []
        x = pictures()[0].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, into=sizes: into.append(tensor.numel()) or tensor, lambda tensor: tensor):
            score = reward.score(reward.encode(x), PROMPTS).sum()
        score.backward()
        assert x.grad is not None
        kept.append(sum(sizes))
        gradients.append(x.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)
    assert kept[1] < 0.5 * kept[0]


def test_weights_in_bfloat16_score_about_the_same_in_float32(vlm_folder: Path, reward: qwen_vl.VlmReward) -> None:
    half, x = qwen_vl.VlmReward.from_config(config.QwenVLConfig(path=str(vlm_folder))), pictures()[0].requires_grad_()
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
    return plain if plain.startswith("lm_head.") else f"model.{plain}" if plain.startswith("visual.") else f"model.language_model.{plain}"


@pytest.mark.parametrize("naming", [older, newer])
def test_both_published_layouts_load(naming: Callable[[str], str], copy: Path, reward: qwen_vl.VlmReward) -> None:
    weights = {naming(name): tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    images, _ = pictures()
    named = qwen_vl.VlmReward.from_config(settings(copy))
    assert torch.equal(named.score(named.encode(images), PROMPTS), reward.score(reward.encode(images), PROMPTS))


def test_it_comes_from_the_hub_and_its_reader_may_lie_elsewhere(copy: Path, reward: qwen_vl.VlmReward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = pictures()
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(copy / name, bare / name)
    with download_hub() as served:
        served.publish("maker/vlm", bare)
        served.publish("maker/reader", copy)
        point_at(served.url, tmp_path, monkeypatch)
        given = settings(Path("maker/vlm"), processor="maker/reader")
        qwen_vl.VlmReward.check(given)
        assert not served.fetched
        qwen_vl.VlmReward.check(given, online=True)
        assert served.fetched and not any("model.safetensors" in name for name in served.fetched)
        far = qwen_vl.VlmReward.from_config(given)
    assert torch.equal(far.score(far.encode(images), PROMPTS), reward.score(reward.encode(images), PROMPTS))
    with pytest.raises(DirectAlignError, match=r"reward\.path: .*preprocessor_config\.json is missing"):
        qwen_vl.VlmReward.check(settings(bare))


def refused(folder: Path, match: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Both `load` and, without loading weights, `check` say so."""
    with pytest.raises(DirectAlignError, match=match):
        qwen_vl.VlmReward.from_config(settings(folder, **more))
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "from_pretrained", None)
        with pytest.raises(DirectAlignError, match=match):
            qwen_vl.VlmReward.check(settings(folder, **more))


def test_a_sound_folder_is_checked_without_weights(vlm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    qwen_vl.VlmReward.check(settings(vlm_folder))


def test_an_answer_is_one_token(vlm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(vlm_folder, r"reward\.yes: 'Certainly' is \d+ tokens of this model", monkeypatch, yes="Certainly")
    refused(vlm_folder, r"reward\.no: '' is 0 tokens", monkeypatch, no="")
    refused(vlm_folder, r"reward\.no: 'Yes' is the same token as reward\.yes", monkeypatch, no="Yes")


def test_a_folder_of_another_kind_is_refused(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(clip_folder, r"reward\.path: .*holds a model of type clip, known are qwen2_vl, qwen2_5_vl, qwen3_vl", monkeypatch)
    refused(tmp_path / "nothing", r"reward\.path: .*no such folder", monkeypatch)


@pytest.mark.parametrize("kept", [0, 200, -100])
def test_truncated_weights_are_refused_by_name(kept: int, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    refused(copy, r"reward\.path: .*model\.safetensors: not a complete safetensors file", monkeypatch)


def test_a_missing_file_of_weights_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(copy, r"reward\.path: .*model-00002-of-00002\.safetensors .* missing", monkeypatch)


def test_weights_that_lack_a_tensor_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DirectAlignError, match=r"weights lack lm_head\.weight"):
        qwen_vl.VlmReward.from_config(settings(copy))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / name).unlink()
    refused(copy, rf"reward\.path: .*{name}", monkeypatch)


@pytest.mark.parametrize(
    ("template", "match"), [("{{ messages[0]['content'][1]['text'] }}", "shows no image"), ("{% if", "cannot be used"), (None, "is missing")]
)
def test_a_template_without_an_image_is_refused(template: str | None, match: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    refused(copy, rf"reward\.path: .*{match}", monkeypatch)


def test_the_tokenizers_own_template_serves_where_there_is_no_other(copy: Path, reward: qwen_vl.VlmReward) -> None:
    (copy / "chat_template.json").unlink()
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert qwen_vl.VlmReward.from_config(settings(copy)).chat.render("a red star") == reward.chat.render("a red star")


def test_image_settings_of_another_model_are_refused(copy: Path) -> None:
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 8}))
    with pytest.raises(DirectAlignError, match=r"reward\.path: .*patches of 8.* the model reads 4, 2, 2"):
        qwen_vl.VlmReward.from_config(settings(copy))


def test_a_prompt_holds_no_image(reward: qwen_vl.VlmReward) -> None:
    with pytest.raises(DirectAlignError, match=r"holds <\|image_pad\|>"):
        reward.score(reward.encode(pictures()[0]), ["<|image_pad|>", "a red star"])


def test_one_prompt_per_image(reward: qwen_vl.VlmReward) -> None:
    with pytest.raises(AssertionError, match="1 prompts for 2 images"):
        reward.score(reward.encode(pictures()[0]), PROMPTS[:1])
