"""The second toy world through the command: it does all that the first one does."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from directalign.cli import app
from directalign.data.prompts import read_prompts
from directalign.toyworld import drawings
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS
from directalign.types import DirectAlignError

FEW = (
    *("train.num_steps=1", "train.save_every=0", "train.sample_every=0", "data.batch_size=2"),
    *("evaluate.num_samples=4", "evaluate.num_samples_during=2", "evaluate.every=0"),
    *("rollout.num_inference_steps=2", "train.sample_prompts=null"),
)


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_its_prompts_are_in_four_lists_that_share_nothing():
    lists = [read_prompts(f"world2{part}") for part in ("", ":validation", ":test", ":held_out")]
    assert [len(each) for each in lists] == [238, 60, 60, 90]
    assert sorted(text for each in lists for text in each) == sorted(drawings.all_captions())
    assert read_prompts("world2:train") == lists[0]
    assert read_prompts("world:held_out") == WORLDS["world"].scenes.held_out_captions()
    scenes = drawings.draw_scenes(2000, torch.Generator().manual_seed(1))
    assert set(scenes.captions()).isdisjoint(lists[3])
    for captions in map(drawings.scenes_of, lists):
        assert len(captions.thing.unique()) == 56 and len(captions.background.unique()) == 8
    with pytest.raises(DirectAlignError, match="no prompts 'world2:new': choose world2:train, "):
        read_prompts("world2:new")


def test_captions_round_trip_and_styles_are_drawings_of_their_own():
    scenes = drawings.scenes_of(drawings.all_captions(), style="soft")
    assert scenes.captions() == drawings.all_captions()
    few = scenes.take(torch.arange(0, 448, 56))
    drawn = [
        drawings.render(few.with_style(style), torch.Generator().manual_seed(5))
        for style in drawings.STYLES
    ]
    assert all(
        each.min() >= 0 and each.max() <= 1 and each.shape == drawn[0].shape for each in drawn
    )
    for first in range(len(drawn)):
        for second in range(first):
            assert ((drawn[first] - drawn[second]).abs().mean((1, 2, 3)) > 0.02).all()


def test_export_images_and_judge(world2, tmp_path):
    command("world", "export", tmp_path / "models", "--name", "world2")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(
        WORLDS["world2"].models
    )
    wide = load_file(tmp_path / "models/reward_tint_rho50/model.safetensors")
    assert {each.dtype for each in wide.values()} == {torch.float32}
    command(
        "world", "images", tmp_path / "set", "--name", "world2", "--count", 3, "--style", "soft"
    )
    captions = [path.read_text().strip() for path in sorted((tmp_path / "set").glob("*.txt"))]
    found = load_judge(WORLDS["world2"])(torch.rand(3, 3, 64, 64), captions)
    assert set(found) == {*WORLDS["world2"].judged, "style_photo"}
    assert torch.equal(found["content"], found["thing"] * found["background"])
    styles = [found[f"style_{style}"] for style in drawings.JUDGED_STYLES]
    assert torch.equal(torch.stack(styles).sum(0), torch.ones(3))


def test_train_evaluate_and_compare(world2, tmp_path):
    settings = [word for each in FEW for word in ("--set", each)]
    command("train", "world2_direct_align", "--out", tmp_path / "run", *settings)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for name in ("photo_rate", "content", "photo_and_content"):
        assert 0 <= summary["after"][name]["value"] <= 1
    assert 0 <= summary["after"]["style_reject"] <= 1
    page = (tmp_path / "run/report.html").read_text()
    assert "Fluent 3D" in page and "CC BY 4.0" in page
    out = ("--out", tmp_path / "both", "--num-samples", 2, "--seeds-per-prompt", 1)
    sources = (tmp_path / "run", "world2:flux_promptable")
    own = ("--prompts", "world2:held_out", "--judge", "world2")
    command("compare", *sources, *own, *out, "--reward", "smooth=world2:reward_smooth")
    models = json.loads((tmp_path / "both/summary.json").read_text())["models"]
    assert len(models) == 2 and all(
        {"photo_and_content", "thing"} <= each.keys() for each in models.values()
    )
    assert all("score_smooth" in each for each in models.values())
    assert "Fluent 3D" in (tmp_path / "both/report.html").read_text()


def test_an_unknown_part_of_it_is_named(world2, tmp_path):
    run = [
        "train",
        "world2_srpo",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "model.path=world2:sdxl",
    ]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 2 or result.exit_code == 1
    assert "choose world2:flux, world2:flux_promptable" in result.output
