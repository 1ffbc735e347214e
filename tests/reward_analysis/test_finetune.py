"""A finetuned reward responds more, keeps its bare scores and frozen parts, and is reproducible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from directalign.config import ControlPhrases, QwenVLConfig
from directalign.reward_analysis.finetune import (
    FinetuneConfig,
    LossWeights,
    add_adapters,
    finetune,
    merge_adapters,
)
from directalign.reward_analysis.images import (
    CAST,
    Examples,
    load_examples,
    random_cast,
    split_examples,
)
from directalign.rewards.clip import ClipReward
from directalign.rewards.pixel_statistics import PixelReward
from directalign.rewards.qwen_vl import VlmReward
from directalign.types import DirectAlignError
from tiny_clip import clip_folder
from tiny_vlm import vlm_folder

__all__ = ["clip_folder", "vlm_folder"]

WORDS = ControlPhrases(positive=["Realistic photo"], negative=["CG render"])
SETTINGS = FinetuneConfig(num_steps=60, batch_size=8, learning_rate=1e-3)
FREE = LossWeights(keep=0.0, hold=0.0)
VLM_SETTINGS = FinetuneConfig(num_steps=16, batch_size=6, learning_rate=1e-2, check_every=4)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return load_examples("world:photo/cg", "--images", count=32, seed=3)


@pytest.fixture(scope="module")
def plates() -> Examples:
    """Reddish and bluish plates, 16 pixels a side: four tokens of the tiny VLM."""
    grey = 0.3 * torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = tuple(f"a star {i}" for i in range(12))
    return Examples(
        torch.cat([grey + 0.6, grey, grey], 1),
        torch.cat([grey, grey, grey + 0.6], 1),
        prompts,
        prompts,
        paired=True,
    )


def weights_of(reward: ClipReward | VlmReward) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in reward.model.state_dict().items()}


@torch.no_grad()
def bare_scores(reward: ClipReward, examples: Examples) -> torch.Tensor:
    return reward.score(reward.encode(examples.wanted), examples.wanted_prompts)


def test_a_clip_learns_to_respond_and_keeps_the_rest(clip_folder: Path, examples: Examples) -> None:
    reward = ClipReward.load(str(clip_folder))
    frozen, bare = weights_of(reward), bare_scores(reward, examples)
    result = finetune(reward, examples, WORDS, SETTINGS)
    assert (
        result.after["responsiveness"] > result.before["responsiveness"] + 0.5
        and result.after["auc"] > result.before["auc"]
    )
    assert result.after["angle"]["value"] < result.before["angle"]["value"] - 20
    assert isinstance(result.reward, ClipReward)
    assert (bare_scores(result.reward, examples) - bare).abs().max() < 0.1
    after = weights_of(result.reward)
    text = ("text_model.", "text_projection.")
    assert all(
        torch.equal(after[name], frozen[name]) for name in frozen if not name.startswith(text)
    )
    assert not torch.equal(after["text_projection.weight"], frozen["text_projection.weight"])
    assert not any(parameter.requires_grad for parameter in result.reward.model.parameters())


def test_the_same_seed_gives_the_same_weights(clip_folder: Path, examples: Examples) -> None:
    short = replace(SETTINGS, num_steps=4, batch_size=4, weights=FREE)
    first, second, other = (
        weights_of(finetune(ClipReward.load(str(clip_folder)), examples, WORDS, each).reward)
        for each in (short, short, replace(short, seed=1))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_adapters_in_both_towers_are_merged_and_gone(clip_folder: Path, examples: Examples) -> None:
    reward = ClipReward.load(str(clip_folder))
    before = weights_of(reward)
    result = finetune(
        reward,
        examples,
        WORDS,
        FinetuneConfig(
            "lora", num_steps=6, batch_size=8, learning_rate=3e-3, check_every=2, weights=FREE
        ),
    )
    assert result.best_step > 0
    after = weights_of(result.reward)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("text_model") for name in changed) and any(
        name.startswith("vision_model") for name in changed
    )
    assert all(
        name.endswith(
            (
                "q_proj.weight",
                "k_proj.weight",
                "v_proj.weight",
                "out_proj.weight",
                "fc1.weight",
                "fc2.weight",
            )
        )
        for name in changed
    )


def test_merging_keeps_what_the_adapters_say() -> None:
    model = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4), "other": torch.nn.Linear(4, 4)})
    parameters = add_adapters(model, ["fc1"], seed=0)
    torch.nn.init.normal_(parameters[1])
    x = torch.randn(3, 4)
    before = model["fc1"](x)
    merge_adapters(model)
    assert type(model["fc1"]) is torch.nn.Linear and torch.allclose(
        model["fc1"](x), before, atol=1e-6
    )


def test_without_improvement_the_weights_are_restored(
    clip_folder: Path, examples: Examples
) -> None:
    reward = ClipReward.load(str(clip_folder))
    before = weights_of(reward)
    nothing = LossWeights(respond=0.0, straight=0.0, hold=0.0, keep=1.0, steady=0.0)
    result = finetune(
        reward,
        examples,
        WORDS,
        replace(SETTINGS, num_steps=6, check_every=2, patience=1, weights=nothing),
    )
    assert (result.best_step, result.stopped_at) == (0, 2)
    assert all(
        torch.equal(value, before[name]) for name, value in weights_of(result.reward).items()
    )


def test_a_vlm_learns_in_its_language_model_alone(vlm_folder: Path, plates: Examples) -> None:
    reward = VlmReward.from_config(QwenVLConfig(path=str(vlm_folder)))
    before = weights_of(reward)
    result = finetune(reward, plates, WORDS, VLM_SETTINGS)
    assert (
        result.best_step > 0
        and result.after["responsiveness"] > result.before["responsiveness"] + 0.5
    )
    assert isinstance(result.reward, VlmReward)
    after = weights_of(result.reward)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".language_model." in name for name in changed)


def test_no_caption_is_learned_from_and_held_out(examples: Examples) -> None:
    learn, held = split_examples(examples, 0, "test")
    assert learn.paired and held.paired and not set(learn.wanted_prompts) & set(held.wanted_prompts)
    assert len(learn.wanted) + len(held.wanted) == len(examples.wanted) and set(
        held.unwanted_prompts
    ) == set(held.wanted_prompts)
    assert (
        split_examples(examples, 0, "test")[1].wanted_prompts
        == held.wanted_prompts
        != split_examples(examples, 1, "test")[1].wanted_prompts
    )


def test_a_cast_is_as_strong_as_said_and_shared_by_no_two() -> None:
    grey = torch.full((8, 3, 4, 4), 0.5)
    moved = (random_cast(grey, torch.Generator().manual_seed(0)) - grey).mean((2, 3))
    assert (
        moved.norm(dim=1).max() <= CAST + 1e-6
        and moved.sum(1).abs().max() < 1e-6
        and len(set(moved[:, 0].tolist())) == 8
    )
    lit = random_cast(grey, torch.Generator().manual_seed(0), light=0.5).mean((1, 2, 3))
    assert 0.25 <= lit.min() < lit.max() <= 0.75


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (ControlPhrases(positive=["Realistic photo"]), SETTINGS, "--negative"),
        (
            ControlPhrases(positive=["Anime"], negative=["Anime"]),
            SETTINGS,
            "scores both sides equally",
        ),
        (WORDS, replace(SETTINGS, learning_rate=1e30), "smaller --learning-rate"),
    ],
)
def test_unusable_words_and_settings_are_refused(
    clip_folder: Path,
    examples: Examples,
    words: ControlPhrases,
    settings: FinetuneConfig,
    message: str,
) -> None:
    with pytest.raises(DirectAlignError, match=message):
        finetune(ClipReward.load(str(clip_folder)), examples, words, settings)


def test_few_captions_and_other_rewards_are_refused(
    clip_folder: Path, vlm_folder: Path, examples: Examples, plates: Examples
) -> None:
    few = Examples(
        examples.wanted[:2],
        examples.unwanted[:2],
        examples.wanted_prompts[:2],
        examples.unwanted_prompts[:2],
        paired=True,
    )
    with pytest.raises(DirectAlignError, match="2 different captions"):
        finetune(ClipReward.load(str(clip_folder)), few, WORDS, SETTINGS)
    with pytest.raises(DirectAlignError, match="pixels cannot be finetuned"):
        finetune(PixelReward("redness"), examples, WORDS, SETTINGS)
    with pytest.raises(DirectAlignError, match="--part text"):
        finetune(
            VlmReward.from_config(QwenVLConfig(path=str(vlm_folder))),
            plates,
            WORDS,
            replace(SETTINGS, part="text"),
        )
    with pytest.raises(DirectAlignError, match="--gap"):
        finetune(
            VlmReward.from_config(QwenVLConfig(path=str(vlm_folder))),
            plates,
            WORDS,
            replace(VLM_SETTINGS, gap=1.0),
        )
