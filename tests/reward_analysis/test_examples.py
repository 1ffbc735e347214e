"""Wanted and unwanted images: paired toy-world renders, captioned folders, and refusals."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from directalign import config
from directalign.reward_analysis.images import PROBES, load_examples, split_examples
from directalign.reward_analysis.phrases import PhraseTable, analyze_phrases
from directalign.reward_analysis.soft_prompts import SoftPromptConfig, fit_soft_prompts
from directalign.rewards import load_named_reward
from directalign.toyworld.judges import load_judge
from directalign.types import DirectAlignError

KEY = "--images"


def save(
    file: Path, color: str = "red", size: tuple[int, int] = (40, 30), caption: str = ""
) -> None:
    """An image of this color, captioned unless `caption` is empty."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)
    if caption:
        file.with_suffix(".txt").write_text(caption)


def test_renders_have_the_requested_styles_and_the_same_content():
    examples = load_examples("world:photo/cg", KEY, count=24)
    wanted, unwanted = (load_judge()(*side) for side in examples.sides)
    assert examples.paired and examples.wanted_prompts == examples.unwanted_prompts
    assert wanted["photo_rate"].mean() > 0.9 and unwanted["style_cg"].mean() > 0.9
    assert wanted["content"].mean() > 0.9 and unwanted["content"].mean() > 0.9


def test_world_is_photo_against_the_other_styles_in_turn():
    examples = load_examples("world", KEY, count=12)
    rates = load_judge()(*examples.sides[1])
    counts = [rates[f"style_{each}"].sum().item() for each in ("photo", "cg", "painting", "anime")]
    assert counts == [0, 4, 4, 4]
    again = load_examples("world:photo/rest", KEY, count=12)
    assert torch.equal(again.wanted, examples.wanted)
    assert torch.equal(again.unwanted, examples.unwanted)


def test_folders_are_paired_by_name(tmp_path, caplog):
    for name, ending, color in (("b", "png", "red"), ("a", "bmp", "blue")):
        save(tmp_path / "wanted" / f"{name}.png", color, caption=f"thing {name}")
        save(tmp_path / "unwanted" / f"{name}.{ending}", color, caption=f"thing {name}")
    examples = load_examples(str(tmp_path), KEY)
    assert examples.paired and examples.wanted_prompts == ("thing a", "thing b")
    assert examples.unwanted_prompts == ("thing a", "thing b")
    assert examples.wanted.shape == (2, 3, 30, 30)  # the square of the shortest side
    assert torch.allclose(examples.wanted, examples.unwanted, atol=1e-6)
    one = load_examples(str(tmp_path), KEY, count=1, seed=2)  # a pair is drawn as one
    assert one.paired and one.wanted_prompts == one.unwanted_prompts
    save(tmp_path / "unwanted" / "z.png", "blue", (20, 50), "a thing")
    assert caplog.text == ""
    other = load_examples((str(tmp_path / "wanted"), str(tmp_path / "unwanted")), KEY)
    (line,) = caplog.messages
    assert "2 names are on both sides, of 2 and 3 images" in line and "without pairs" in line
    assert not other.paired and other.wanted.shape == (2, 3, 20, 20)
    assert other.unwanted.shape == (3, 3, 20, 20)


@pytest.mark.parametrize("differ", [0, 1, 8])
def test_images_of_one_name_are_pairs_only_under_one_caption(tmp_path, caplog, differ):
    for i in range(8):
        for side, color in (("wanted", "red"), ("unwanted", "blue")):
            caption = f"{side if i < differ else 'thing'} {i}"
            save(tmp_path / side / f"{i}.png", color, caption=caption)
    examples = load_examples(str(tmp_path), KEY)
    assert examples.paired == (differ == 0)
    named = f"{differ} of 8 images .*/wanted/0.png, .*/unwanted/0.png.* without pairs"
    assert bool(re.search(named, caplog.text)) == (differ > 0)
    assert len(caplog.records) == (differ > 0)
    reward = load_named_reward("world:reward")
    phrases = config.ControlPhrases(positive=["Photo"], negative=["Cartoon"])
    for settings in (SoftPromptConfig(num_steps=1, seed=seed) for seed in range(3)):
        try:
            assert fit_soft_prompts(reward, examples, phrases, settings).held_out >= 2
        except DirectAlignError as error:  # too few captions of one side in this draw
            assert differ and "different captions" in str(error)
    report = analyze_phrases(PhraseTable(reward, examples), ["Photo"], ["Cartoon"])
    assert report.all_given and report.all_given.gap.value


def test_unknown_styles_are_refused():
    for styles in ("photo", "photo/photo", "rest/photo", "oil/cg", "photo/cg/anime"):
        message = f"--images: world:{styles}: .*photo, cg, painting, anime"
        with pytest.raises(DirectAlignError, match=message):
            load_examples(f"world:{styles}", KEY)


def test_missing_sides_captions_and_images_are_refused(tmp_path):
    save(tmp_path / "wanted" / "a.png", caption="a thing")
    with pytest.raises(DirectAlignError, match=r"no folder .*unwanted; give"):
        load_examples(str(tmp_path), KEY)
    save(tmp_path / "unwanted" / "a.png")
    with pytest.raises(
        DirectAlignError, match=r"a\.txt is missing \(1 such\); write it, or let --caption"
    ):
        load_examples(str(tmp_path), KEY)
    (tmp_path / "unwanted" / "a.txt").write_text(" ")
    save(tmp_path / "unwanted" / "b.png", caption="a thing")
    with pytest.raises(DirectAlignError, match=r"a\.txt is blank; repair or remove"):
        load_examples(str(tmp_path), KEY)
    with pytest.raises(DirectAlignError, match="0 images per side"):
        load_examples("world", KEY, count=0)


def test_captions_are_either_trained_on_or_held_out():
    examples = load_examples("world:photo/cg", KEY, count=32, seed=3)
    train, held_out = split_examples(examples, 0, "test")
    assert train.paired and held_out.paired
    assert not set(train.wanted_prompts) & set(held_out.wanted_prompts)
    assert len(train.wanted) + len(held_out.wanted) == len(examples.wanted)
    assert set(held_out.unwanted_prompts) == set(held_out.wanted_prompts)
    again, other = (split_examples(examples, seed, "test")[1] for seed in (0, 1))
    assert again.wanted_prompts == held_out.wanted_prompts != other.wanted_prompts


def test_probes_change_what_they_are_named_after():
    gray = torch.full((1, 3, 64, 64), 0.4)
    gray[..., ::2] += 0.2
    changed = {name: probe(gray) for name, probe in PROBES.items()}
    channels = {name: each.mean((0, 2, 3)) for name, each in changed.items()}
    assert channels["red tint"].argmax() == 0 and channels["green tint"].argmax() == 1
    assert channels["purple tint"].argmin() == 1
    assert changed["brightness"].mean() > gray.mean() + 0.09
    assert changed["blur"].std() < gray.std() < changed["sharpening"].std()
    assert torch.allclose(changed["saturation"], gray)  # gray has no color
    for image in changed.values():
        assert image.min() >= 0 and image.max() <= 1 and image.shape == gray.shape
