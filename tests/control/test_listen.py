"""A reward that is taught to listen: it responds more, keeps its bare scores and its frozen parts, and comes out the same twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from directalign.config import ControlPhrases, Vlm
from directalign.control.examples import Examples, load_examples
from directalign.control.hearing import Weights
from directalign.control.listen import Lessons, split, teach
from directalign.control.nuisance import CAST, draw
from directalign.control.students import adapt, merge
from directalign.rewards.clip import ClipReward
from directalign.rewards.pixel_statistics import PixelReward
from directalign.rewards.qwen_vl import VlmReward
from directalign.types import DirectAlignError
from tiny_clip import clip_folder
from tiny_vlm import vlm_folder

__all__ = ["clip_folder", "vlm_folder"]

WORDS = ControlPhrases(positive=["Realistic photo"], negative=["CG render"])
LESSONS = Lessons(num_steps=60, batch_size=8, learning_rate=1e-3)
FREE = Weights(keep=0.0, hold=0.0)
VLM_LESSONS = Lessons(num_steps=16, batch_size=6, learning_rate=1e-2, check_every=4)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return load_examples("world:photo/cg", "--images", count=32, seed=3)


@pytest.fixture(scope="module")
def plates() -> Examples:
    """Reddish and bluish plates, 16 pixels a side: four tokens of the tiny VLM."""
    grey = 0.3 * torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = tuple(f"a star {i}" for i in range(12))
    return Examples(torch.cat([grey + 0.6, grey, grey], 1), torch.cat([grey, grey, grey + 0.6], 1), prompts, prompts, paired=True)


def weights_of(reward: ClipReward | VlmReward) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in reward.model.state_dict().items()}


@torch.no_grad()
def bare_scores(reward: ClipReward, examples: Examples) -> torch.Tensor:
    return reward.score(reward.encode(examples.wanted), examples.wanted_prompts)


def test_a_clip_learns_to_respond_and_keeps_the_rest(clip_folder: Path, examples: Examples) -> None:
    reward = ClipReward.load(str(clip_folder))
    frozen, bare = weights_of(reward), bare_scores(reward, examples)
    taught = teach(reward, examples, WORDS, LESSONS)
    assert taught.after["responsiveness"] > taught.before["responsiveness"] + 0.5 and taught.after["auc"] > taught.before["auc"]
    assert taught.after["angle"]["value"] < taught.before["angle"]["value"] - 20
    assert isinstance(taught.reward, ClipReward)
    assert (bare_scores(taught.reward, examples) - bare).abs().max() < 0.1
    after = weights_of(taught.reward)
    text = ("text_model.", "text_projection.")
    assert all(torch.equal(after[name], frozen[name]) for name in frozen if not name.startswith(text))
    assert not torch.equal(after["text_projection.weight"], frozen["text_projection.weight"])
    assert not any(parameter.requires_grad for parameter in taught.reward.model.parameters())


def test_the_same_seed_gives_the_same_weights(clip_folder: Path, examples: Examples) -> None:
    short = replace(LESSONS, num_steps=4, batch_size=4, weights=FREE)
    first, second, other = (
        weights_of(teach(ClipReward.load(str(clip_folder)), examples, WORDS, each).reward) for each in (short, short, replace(short, seed=1))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_adapters_in_both_towers_are_merged_and_gone(clip_folder: Path, examples: Examples) -> None:
    reward = ClipReward.load(str(clip_folder))
    before = weights_of(reward)
    taught = teach(reward, examples, WORDS, Lessons("lora", num_steps=6, batch_size=8, learning_rate=3e-3, check_every=2, weights=FREE))
    assert taught.best_step > 0
    after = weights_of(taught.reward)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("text_model") for name in changed) and any(name.startswith("vision_model") for name in changed)
    assert all(name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")) for name in changed)


def test_merging_keeps_what_the_adapters_say() -> None:
    model = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4), "other": torch.nn.Linear(4, 4)})
    parameters = adapt(model, ["fc1"], seed=0)
    torch.nn.init.normal_(parameters[1])
    x = torch.randn(3, 4)
    told = model["fc1"](x)
    merge(model)
    assert type(model["fc1"]) is torch.nn.Linear and torch.allclose(model["fc1"](x), told, atol=1e-6)


def test_lessons_that_do_no_good_leave_the_reward_as_it_was(clip_folder: Path, examples: Examples) -> None:
    reward = ClipReward.load(str(clip_folder))
    before = weights_of(reward)
    nothing = Weights(respond=0.0, straight=0.0, hold=0.0, keep=1.0, steady=0.0)
    taught = teach(reward, examples, WORDS, replace(LESSONS, num_steps=6, check_every=2, patience=1, weights=nothing))
    assert (taught.best_step, taught.stopped_at) == (0, 2)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(taught.reward).items())


def test_a_vlm_learns_in_its_language_model_alone(vlm_folder: Path, plates: Examples) -> None:
    reward = VlmReward.from_config(Vlm(path=str(vlm_folder)))
    before = weights_of(reward)
    taught = teach(reward, plates, WORDS, VLM_LESSONS)
    assert taught.best_step > 0 and taught.after["responsiveness"] > taught.before["responsiveness"] + 0.5
    assert isinstance(taught.reward, VlmReward)
    after = weights_of(taught.reward)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".language_model." in name for name in changed)


def test_no_caption_is_learned_from_and_held_out(examples: Examples) -> None:
    learn, held = split(examples, seed=0)
    assert learn.paired and held.paired and not set(learn.wanted_prompts) & set(held.wanted_prompts)
    assert len(learn.wanted) + len(held.wanted) == len(examples.wanted) and set(held.unwanted_prompts) == set(held.wanted_prompts)
    assert split(examples, seed=0)[1].wanted_prompts == held.wanted_prompts != split(examples, seed=1)[1].wanted_prompts


def test_a_cast_is_as_strong_as_said_and_shared_by_no_two() -> None:
    grey = torch.full((8, 3, 4, 4), 0.5)
    moved = (draw(grey, torch.Generator().manual_seed(0)) - grey).mean((2, 3))
    assert moved.norm(dim=1).max() <= CAST + 1e-6 and moved.sum(1).abs().max() < 1e-6 and len(set(moved[:, 0].tolist())) == 8
    lit = draw(grey, torch.Generator().manual_seed(0), light=0.5).mean((1, 2, 3))
    assert 0.25 <= lit.min() < lit.max() <= 0.75


@pytest.mark.parametrize(
    ("words", "lessons", "said"),
    [
        (ControlPhrases(positive=["Realistic photo"]), LESSONS, "--negative"),
        (ControlPhrases(positive=["Anime"], negative=["Anime"]), LESSONS, "reads both sides alike"),
        (WORDS, replace(LESSONS, learning_rate=1e30), "smaller --learning-rate"),
    ],
)
def test_lessons_that_cannot_be_given_are_refused(clip_folder: Path, examples: Examples, words: ControlPhrases, lessons: Lessons, said: str) -> None:
    with pytest.raises(DirectAlignError, match=said):
        teach(ClipReward.load(str(clip_folder)), examples, words, lessons)


def test_few_captions_and_other_rewards_are_refused(clip_folder: Path, vlm_folder: Path, examples: Examples, plates: Examples) -> None:
    few = Examples(examples.wanted[:2], examples.unwanted[:2], examples.wanted_prompts[:2], examples.unwanted_prompts[:2], paired=True)
    with pytest.raises(DirectAlignError, match="2 different captions"):
        teach(ClipReward.load(str(clip_folder)), few, WORDS, LESSONS)
    with pytest.raises(DirectAlignError, match="pixels cannot be taught"):
        teach(PixelReward("redness"), examples, WORDS, LESSONS)
    with pytest.raises(DirectAlignError, match="--part text"):
        teach(VlmReward.from_config(Vlm(path=str(vlm_folder))), plates, WORDS, replace(LESSONS, part="text"))
    with pytest.raises(DirectAlignError, match="--gap"):
        teach(VlmReward.from_config(Vlm(path=str(vlm_folder))), plates, WORDS, replace(VLM_LESSONS, gap=1.0))
