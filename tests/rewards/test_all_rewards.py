"""Every reward with a network: gradient, frozen weights, scale, recomputation, checks."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from directalign.interfaces import Reward
from directalign.rewards import check_reward, load_reward, reward_class, reward_cuts
from published_layouts import images_drawn
from rewards.cases import CASES, PROMPTS

Sections = Callable[[str], Any]
VLM = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "hpsv3", "hpsv3++")


def networks(reward: Any) -> list[torch.nn.Module]:
    return [reward.model, *([reward.head] if hasattr(reward, "head") else [])]


def score(reward: Any, images: Tensor) -> Tensor:
    return reward.score(reward.encode(images), PROMPTS[: len(images)])


def differs_from_slope(
    score: Callable[[Tensor], Tensor], images: Tensor, directions: int = 2, step: float = 1e-5
) -> float:
    """Largest relative difference between the gradient and the measured slope of `score` (to a
    scalar) at float64 `images`."""
    assert images.dtype == torch.float64
    at = images.clone().requires_grad_()
    score(at).backward()
    assert at.grad is not None
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(directions):
        along = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            slope = float(score(images + step * along) - score(images - step * along)) / (2 * step)
        worst = max(worst, abs(float((at.grad * along).sum()) - slope) / max(abs(slope), 1e-8))
    return worst


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", CASES)


def test_contract_and_independent_rows(name, sections):
    settings = sections(name)
    reward = load_reward(settings)
    kind = reward_class(settings.name)
    assert isinstance(reward, Reward) and reward.name == settings.name and reward.differentiable
    assert reward.reads_prompt == kind.reads_prompt == (settings.name != "aesthetic")
    images = images_drawn(2, 40, 36, 0)
    features = reward.encode(images)
    both = reward.score(features, PROMPTS)
    assert both.shape == (2,) and both.dtype == torch.float32
    single = [reward.score(reward.encode(images[i : i + 1]), PROMPTS[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(single), atol=1e-5, rtol=1e-5)
    swapped = reward.score(features, PROMPTS[::-1])
    assert (both - swapped).abs().max() > 1e-5 if reward.reads_prompt else both.equal(swapped)
    if reward.reads_prompt:
        with pytest.raises(AssertionError, match="1 prompts for 2 images"):
            reward.score(features, PROMPTS[:1])
        assert reward.score(features, ["a red star " * 50, "x" * 600]).isfinite().all()


def test_scale_multiplies(name, sections):
    settings, images = sections(name), images_drawn(2, 32, 32, 1)
    scaled = load_reward(settings.model_copy(update={"scale": 3.0}))
    torch.testing.assert_close(score(scaled, images), 3 * score(load_reward(settings), images))


def test_gradient_equals_finite_differences_and_weights_stay_frozen(name, sections, monkeypatch):
    reward = load_reward(sections(name))
    parts = networks(reward)
    before = [{key: w.clone() for key, w in part.state_dict().items()} for part in parts]
    images = images_drawn(2, 40, 36, 2).requires_grad_()
    (-score(reward, images)).sum().backward()
    assert images.grad is not None and (images.grad.abs().amax((1, 2, 3)) > 0).all()
    for part, weights in zip(parts, before, strict=True):
        assert not part.training
        assert not any(p.requires_grad or p.grad is not None for p in part.parameters())
        assert all(torch.equal(w, weights[key]) for key, w in part.state_dict().items())
    reward = load_reward(sections(name))  # without cached prompts
    for part in networks(reward):
        part.double()
    if name in VLM:  # transformers computes norms and rotations in float32 for any dtype
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    if name == "hpsv3++":  # no gradient through the capability, so it must not matter
        reward.head["cond_encoder"][0].weight[:, 0] = 0
    exact = images_drawn(2, 40, 36, 3).double()
    difference = differs_from_slope(lambda x: score(reward, x).sum(), exact)
    assert difference < 1e-5


def test_recomputed_activations_give_the_same_gradient_and_use_less_memory(name, sections):
    sizes, gradients = [], []
    for recomputed in (False, True):
        settings = sections(name).model_copy(update={"gradient_checkpointing": recomputed})
        reward = load_reward(settings)
        weights = {p.data_ptr() for part in networks(reward) for p in part.parameters()}
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved, weights: set[int] = weights) -> Tensor:
            saved.append(0 if tensor.data_ptr() in weights else tensor.numel())
            return tensor

        images = images_drawn(2, 40, 36, 4).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = score(reward, images).sum()
        total.backward()
        gradients.append(images.grad)
        sizes.append(sum(saved))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)
    assert sizes[1] < 0.9 * sizes[0]


def test_check_accepts_sound_files_without_loading_weights(name, sections, monkeypatch):
    settings = sections(name)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    check_reward(settings)


def test_prompts_that_lose_their_end_are_counted(name, sections):
    settings, long = sections(name), "a red star on a navy background " * 8
    prompts, phrases = ["a star", long + "and a ring", long + "and a circle", "a star"], ["Photo"]
    reader = getattr(load_reward(settings), "text_reader", None)
    found = reward_cuts(settings, "reward", prompts, phrases)
    if name in (*VLM, "linear", "improved", "v2_5"):  # they read all, or nothing
        assert reader is None and found == []
        return
    assert reader is not None and reader.cut(prompts) == 2
    counted = f"2 of 3 prompts are longer than its {reader.length} tokens after .*'Photo'"
    assert len(found) == 1 and re.search(counted, found[0])
    assert reward_cuts(settings, "reward", ["a star"]) == []
    longest = next(n for n in range(200) if reader.cut(["a " * n + "star"]))
    assert reward_cuts(settings, "reward", ["a " * (longest - 1) + "star"], phrases)
