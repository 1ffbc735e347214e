"""A finetuned reward responds more, keeps its bare scores and frozen parts, and is reproducible."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign.config import ControlPhrases, QwenVLConfig
from directalign.reward_analysis import responsiveness
from directalign.reward_analysis.finetune import CLIP_LAYERS, FinetuneConfig, LossWeights, finetune
from directalign.reward_analysis.images import Examples, load_examples
from directalign.rewards.clip import ClipReward
from directalign.rewards.pixel_statistics import PixelReward
from directalign.rewards.qwen_vl import VlmReward
from directalign.types import DirectAlignError

PHRASES = ControlPhrases(positive=["Realistic photo"], negative=["CG render"])
SETTINGS = FinetuneConfig(num_steps=60, batch_size=8, learning_rate=1e-3)
FREE = LossWeights(keep=0.0, hold=0.0)
VLM_SETTINGS = replace(SETTINGS, num_steps=6, learning_rate=1e-2, check_every=2, weights=FREE)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(responsiveness, "RESAMPLES", 20)


@pytest.fixture(scope="module")
def examples():
    return load_examples("world:photo/cg", "--images", count=32, seed=3)


@pytest.fixture
def clip(clip_folder):
    return ClipReward.load(str(clip_folder))


@pytest.fixture
def vlm(vlm_folder):
    return VlmReward.from_config(QwenVLConfig(path=str(vlm_folder)))


@pytest.fixture(scope="module")
def plates():
    """Reddish and bluish images of 16 pixels a side: four tokens of the tiny VLM."""
    gray = 0.3 * torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    red, blue = torch.cat([gray + 0.6, gray, gray], 1), torch.cat([gray, gray, gray + 0.6], 1)
    prompts = tuple(f"a star {i}" for i in range(12))
    return Examples(red, blue, prompts, prompts, paired=True)


def weights_of(reward: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in reward.model.state_dict().items()}


def changed(before: dict[str, Tensor], reward: Any) -> set[str]:
    after = weights_of(reward)
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_clip_responds_and_keeps_the_rest(clip, examples):
    def bare_scores(reward: Any) -> Tensor:
        with torch.no_grad():
            return reward.score(reward.encode(examples.wanted), examples.wanted_prompts)

    frozen, bare = weights_of(clip), bare_scores(clip)
    tuned, found = finetune(clip, examples, PHRASES, SETTINGS)
    before, after = found["before"], found["after"]
    assert after["responsiveness"] > before["responsiveness"] + 0.5
    assert after["auc"] > before["auc"]
    assert after["angle"]["value"] < before["angle"]["value"] - 20
    assert (bare_scores(tuned) - bare).abs().max() < 0.1
    names = changed(frozen, tuned)
    assert "text_projection.weight" in names
    assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
    assert not any(each.requires_grad for each in clip.model.parameters())


def test_adapters_in_both_towers_are_merged(clip, examples):
    before = weights_of(clip)
    settings = replace(SETTINGS, part="lora", num_steps=6, check_every=2, weights=FREE)
    tuned, found = finetune(clip, examples, PHRASES, replace(settings, learning_rate=3e-3))
    names = changed(before, tuned)
    assert found["best_step"] > 0
    assert {name.split(".")[0] for name in names} == {"text_model", "vision_model"}
    assert all(name.endswith(tuple(f"{each}.weight" for each in CLIP_LAYERS)) for name in names)


def test_without_improvement_the_weights_are_restored(clip, examples):
    before = weights_of(clip)
    weights = LossWeights(respond=0.0, straight=0.0, hold=0.0, keep=1.0, steady=0.0)
    settings = replace(SETTINGS, num_steps=6, check_every=2, patience=1, weights=weights)
    tuned, found = finetune(clip, examples, PHRASES, settings)
    assert (found["best_step"], found["stopped_at"]) == (0, 2)
    assert not changed(before, tuned)


def test_a_vlm_trains_only_its_language_model(vlm, plates):
    before = weights_of(vlm)
    tuned, found = finetune(vlm, plates, PHRASES, VLM_SETTINGS)
    assert found["best_step"] > 0
    assert found["after"]["responsiveness"] > found["before"]["responsiveness"] + 0.5
    names = changed(before, tuned)
    assert names and all(".language_model." in name for name in names)


def test_unusable_inputs_are_refused(clip, vlm, examples, plates):
    few = Examples(*(each[:2] for each in list(vars(examples).values())[:4]), paired=True)
    one_side, same = (
        PHRASES.model_copy(update={"positive": ["Anime"], "negative": negative})
        for negative in ([], ["Anime"])
    )
    for reward, images, phrases, settings, message in (
        (clip, examples, one_side, SETTINGS, "--negative"),
        (clip, examples, same, SETTINGS, "both sides equally"),
        (clip, few, PHRASES, SETTINGS, "2 different captions"),
        (PixelReward("redness"), examples, PHRASES, SETTINGS, "pixels cannot be finetuned"),
        (vlm, plates, PHRASES, replace(SETTINGS, part="text"), "--part text"),
        (vlm, plates, PHRASES, replace(VLM_SETTINGS, gap=1.0), "--gap"),
        (clip, examples, PHRASES, replace(SETTINGS, learning_rate=1e30), "smaller --learning-rate"),
    ):
        with pytest.raises(DirectAlignError, match=message):
            finetune(reward, images, phrases, settings)
