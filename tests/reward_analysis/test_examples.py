"""Wanted and unwanted images: paired renders of the world, folders with captions, and what is
refused; which reward is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from directalign.config.load import recipe_path
from directalign.reward_analysis.images import load_examples
from directalign.rewards.resolve import recipe_words, reward_settings
from directalign.toyworld.judges import load_judge
from directalign.types import DirectAlignError

KEY = "--images"
RECIPE = "world_srpo"


def _save(
    folder: Path,
    side: str,
    name: str,
    colour: str,
    size: tuple[int, int] = (40, 30),
    caption: str | None = "a thing",
) -> None:
    (folder / side).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / side / name)
    if caption is not None:
        (folder / side / name).with_suffix(".txt").write_text(caption)


def test_renders_of_the_world_are_of_the_styles_asked_for_and_share_their_content():
    examples = load_examples("world:photo/cg", KEY, count=24)
    judge = load_judge()
    wanted, unwanted = (
        judge(examples.wanted, examples.wanted_prompts),
        judge(examples.unwanted, examples.unwanted_prompts),
    )
    assert examples.paired and examples.wanted_prompts == examples.unwanted_prompts
    assert wanted["photo_rate"].mean() > 0.9 and unwanted["style_cg"].mean() > 0.9
    assert wanted["content"].mean() > 0.9 and unwanted["content"].mean() > 0.9


def test_both_renders_of_a_pair_are_placed_alike():
    """Objects sit anywhere within ±0.1 of half an image: where their edges are, on average, goes
    together within pairs."""
    examples = load_examples("world:cg/anime", KEY, count=64)

    def middle(images: torch.Tensor) -> torch.Tensor:
        """Mean row of the edges."""
        edges = images.mean(1).diff(dim=-1).abs().sum(-1)
        return (edges * torch.arange(64.0)).sum(-1) / edges.sum(-1)

    assert (
        torch.corrcoef(torch.stack([middle(examples.wanted), middle(examples.unwanted)]))[0, 1]
        > 0.7
    )


def test_world_alone_sets_photographs_against_the_three_other_styles_in_turn():
    examples = load_examples("world", KEY, count=12)
    answers = load_judge()(examples.unwanted, examples.unwanted_prompts)
    assert {
        style: answers[f"style_{style}"].sum().item()
        for style in ("photo", "cg", "painting", "anime")
    } == {"photo": 0, "cg": 4, "painting": 4, "anime": 4}
    again = load_examples("world:photo/rest", KEY, count=12)
    assert torch.equal(again.wanted, examples.wanted) and torch.equal(
        again.unwanted, examples.unwanted
    )


def test_seed_count_and_size_are_obeyed():
    small, other = (
        load_examples("world", KEY, size=(32, 48), count=4),
        load_examples("world", KEY, count=4, seed=1),
    )
    assert (
        small.wanted.shape == (4, 3, 32, 48) and small.wanted.min() >= 0 and small.wanted.max() <= 1
    )
    assert other.wanted.shape == (4, 3, 64, 64) and other.wanted_prompts != small.wanted_prompts


def test_folders_with_equal_names_are_paired_by_name_whatever_the_ending(tmp_path):
    for name, colour in (("b", "red"), ("a", "blue")):
        _save(tmp_path, "wanted", f"{name}.png", colour, caption=f"wanted {name}")
        _save(
            tmp_path,
            "unwanted",
            f"{name}.{'bmp' if name == 'a' else 'png'}",
            colour,
            caption=f"unwanted {name}",
        )
    examples = load_examples(str(tmp_path), KEY)
    assert examples.paired
    assert examples.wanted_prompts == ("wanted a", "wanted b") and examples.unwanted_prompts == (
        "unwanted a",
        "unwanted b",
    )
    assert examples.wanted.shape == (2, 3, 30, 30)  # the square of the shortest side
    assert torch.allclose(examples.wanted, examples.unwanted, atol=1e-6)


def test_pairs_are_drawn_together(tmp_path):
    for number in range(6):
        for side in ("wanted", "unwanted"):
            _save(tmp_path, side, f"{number}.png", "red", caption=f"number {number}")
    examples = load_examples(str(tmp_path), KEY, count=3, seed=2)
    assert (
        examples.paired
        and len(examples.wanted) == 3
        and examples.wanted_prompts == examples.unwanted_prompts
    )


def test_other_names_or_numbers_are_no_pairs(tmp_path):
    for name in ("a", "b", "c"):
        _save(tmp_path, "wanted", f"{name}.png", "red")
    _save(tmp_path, "unwanted", "z.png", "blue", size=(20, 50))
    examples = load_examples(str(tmp_path), KEY)
    assert (
        not examples.paired
        and len(examples.wanted) == 3
        and examples.unwanted.shape == (1, 3, 20, 20)
    )


@pytest.mark.parametrize(
    "path",
    [
        "world:photo",
        "world:photo/photo",
        "world:rest/photo",
        "world:oil/cg",
        "world:photo/cg/anime",
    ],
)
def test_styles_that_the_world_lacks_are_refused_by_name(path):
    with pytest.raises(DirectAlignError, match=f"--images: {path}: .*photo, cg, painting, anime"):
        load_examples(path, KEY)


def test_a_side_that_is_missing_or_an_image_without_caption_is_refused_by_name(tmp_path):
    _save(tmp_path, "wanted", "a.png", "red")
    with pytest.raises(DirectAlignError, match="no folder unwanted/"):
        load_examples(str(tmp_path), KEY)
    _save(tmp_path, "unwanted", "a.png", "red", caption=None)
    with pytest.raises(DirectAlignError, match=r"no usable image.*a\.txt is missing"):
        load_examples(str(tmp_path), KEY)
    _save(tmp_path, "unwanted", "b.png", "red")
    with pytest.raises(DirectAlignError, match=r"a\.txt is missing.*repair or remove"):
        load_examples(str(tmp_path), KEY)
    with pytest.raises(DirectAlignError, match="0 images per side"):
        load_examples("world", KEY, count=0)


def test_a_reward_is_named_by_its_path_or_by_a_recipe(tmp_path):
    assert (
        reward_settings("world:reward").name == "clip"
        and recipe_words("world:reward").positive == []
    )
    assert (
        reward_settings(RECIPE).path == "world:reward"
        and "Realistic photo" in recipe_words(RECIPE).positive
    )
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert reward_settings(str(tmp_path)).name == "siglip"


def test_a_reward_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(DirectAlignError, match=r"no config\.json there"):
        reward_settings(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DirectAlignError, match="model_type 'bert'"):
        reward_settings(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(DirectAlignError, match="not readable as JSON"):
        reward_settings(str(tmp_path))
    recipe = yaml.safe_load(recipe_path(RECIPE).read_text())
    members = [
        {"label": label, "reward": {"name": "clip", "path": "world:reward"}}
        for label in ("first", "second")
    ]
    (tmp_path / "mix.yaml").write_text(
        yaml.safe_dump({**recipe, "reward": {"name": "mix", "members": members}})
    )
    with pytest.raises(DirectAlignError, match="mix of first, second"):
        reward_settings(str(tmp_path / "mix.yaml"))
