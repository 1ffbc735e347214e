"""`directalign reward bias-directions` as a real command: from images, probes and texts to a file,
and a training with the reward made blind by it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import Result

from directalign.evaluation.generate import save_png
from directalign.rewards.clip import ClipReward
from directalign.rewards.projection import fingerprint, read_directions
from directalign.toyworld.scenes import all_captions, render, scenes_of
from tiny_clip import clip_folder

__all__ = ["clip_folder"]
Command = Callable[..., Result]
CAPTIONS = all_captions()[:6]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six pictures with captions, and the same under a red cast."""
    images = render(scenes_of(CAPTIONS), torch.Generator().manual_seed(0))
    cast = (images + 0.2 * torch.tensor([1.0, -0.5, -0.5])[:, None, None]).clamp(0, 1)
    for name, side in (("before", images), ("after", cast)):
        (tmp_path / name).mkdir()
        for place, (image, caption) in enumerate(zip(side, CAPTIONS, strict=True)):
            save_png(image, tmp_path / name / f"{place}.png")
            (tmp_path / name / f"{place}.txt").write_text(caption)
    return tmp_path / "before", tmp_path / "after"


def blind_recipe(recipe: Path, clip_folder: Path, directions: Path) -> Path:
    """The recipe with a projected CLIP in place of its reward."""
    given = yaml.safe_load(recipe.read_text())
    given["reward"] = {"name": "clip", "path": str(clip_folder), "project_out": str(directions)}
    recipe.write_text(yaml.safe_dump(given))
    return recipe


def test_the_real_command_then_a_training_with_the_blind_reward(
    command: Command, recipe: Path, clip_folder: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    before, after = folders
    words = [
        "reward",
        "bias-directions",
        "--reward",
        str(clip_folder),
        "--before",
        str(before),
        "--after",
        str(after),
        "--out",
        "made/d.safetensors",
    ]
    kept = [
        "--keep-words",
        "Realistic photo",
        "--against",
        "CG render",
        "--keep-examples",
        "world:photo/cg",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "directalign", *words, *kept],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[-1] == "made/d.safetensors" and "of the shift is shared by all images" in said[0]
    found = read_directions(tmp_path / "made/d.safetensors", "x")
    reward = ClipReward.load(str(clip_folder))
    assert found.rows.shape == (1, 8) and found.fingerprint == fingerprint(reward.model)
    assert (
        found.made["kept"] == "Realistic photo against CG render, world:photo/cg"
        and found.made["images"] == "6"
    )
    file = blind_recipe(recipe, clip_folder, tmp_path / "made/d.safetensors")
    trained = command("train", file, "--out", "run")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_steps"] == 2


def test_probes_and_components(
    command: Command, clip_folder: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    before, after = folders
    probes = ["--probe", "red tint", "--probe", "blur", "--out", tmp_path / "p.safetensors"]
    assert (
        command(
            "reward", "bias-directions", "--reward", clip_folder, "--before", before, *probes
        ).exit_code
        == 0
    )
    assert len(read_directions(tmp_path / "p.safetensors", "x").rows) == 2
    result = command(
        "reward",
        "bias-directions",
        "--reward",
        clip_folder,
        "--before",
        before,
        "--after",
        after,
        "--components",
        3,
        "--out",
        tmp_path / "c.safetensors",
    )
    assert result.exit_code == 0 and len(read_directions(tmp_path / "c.safetensors", "x").rows) == 3
    probed, learned = (
        read_directions(tmp_path / name, "x").rows for name in ("p.safetensors", "c.safetensors")
    )
    assert (learned[:1] @ probed.T).norm() > 0.9, "the probe is the change that the folder shows"


def test_texts_alone(command: Command, clip_folder: Path, tmp_path: Path) -> None:
    words = ["--keep-words", "Realistic photo", "--against", "CG render"]
    assert (
        command(
            "reward",
            "bias-directions",
            "--reward",
            clip_folder,
            "--prompts",
            "world",
            *words,
            "--out",
            tmp_path / "t.safetensors",
        ).exit_code
        == 0
    )
    found = read_directions(tmp_path / "t.safetensors", "x")
    reward = ClipReward.load(str(clip_folder))
    text = {
        phrase: reward.encode_text([f"{phrase}. {caption}" for caption in CAPTIONS]).mean(0)
        for phrase in ("Realistic photo", "CG render")
    }
    assert found.rows.shape == (1, 8) and found.made["from"] == "world"
    wanted = text["Realistic photo"] - text["CG render"]
    assert (
        (found.rows @ wanted / wanted.norm()).abs().item()
        < 0.5
        < (found.rows @ text["Realistic photo"]).item()
    )


def test_a_run_is_sampled_before_and_after(
    command: Command, recipe: Path, clip_folder: Path, tmp_path: Path
) -> None:
    assert (
        command(
            "train", recipe, "--out", tmp_path / "run", "--set", "train.learning_rate=0.01"
        ).exit_code
        == 0
    )
    result = command(
        "reward",
        "bias-directions",
        "--reward",
        clip_folder,
        "--after",
        tmp_path / "run",
        "--num-samples",
        3,
        "--out",
        tmp_path / "r.safetensors",
    )
    assert result.exit_code == 0, result.output
    assert "of the gain of" in result.output or "along the directions" in result.output
    assert read_directions(tmp_path / "r.safetensors", "x").made["images"] == "3"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--after: missing"),
        (["--probe", "red tint"], "--probe: changes the images of --before itself"),
        (["--before", "before", "--probe", "sparkle"], "--probe sparkle: unknown"),
        (
            ["--before", "before", "--after", "after", "--keep-words", "Photo"],
            "--keep-words and --against",
        ),
        (
            ["--before", "before", "--after", "nothing"],
            "--after nothing: holds neither images nor a run",
        ),
        (["--before", "before", "--after", "other"], "0 names in common"),
        (["--before", "before", "--after", "before"], "moved in no common direction"),
        (
            ["--prompts", "world", "--before", "before"],
            "--prompts: takes the common gradient of texts",
        ),
        (
            ["--before", "bare", "--after", "bare", "--keep-words", "Photo", "--against", "CG"],
            "--keep-words: needs the images' prompts",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    command: Command,
    clip_folder: Path,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("other", "bare"):
        (tmp_path / name).mkdir()
        for place in range(2):
            save_png(torch.rand(3, 16, 16), tmp_path / name / f"{name}{place}.png")
    result = command("reward", "bias-directions", "--reward", clip_folder, *control_phrases)
    assert result.exit_code == 1 and says in result.stderr and result.stderr.count("\n") == 1


def test_a_reward_that_takes_no_project_is_refused(command: Command, recipe: Path) -> None:
    result = command("reward", "bias-directions", "--reward", recipe, "--prompts", "world")
    assert result.exit_code == 1 and "pixels takes no project_out" in result.stderr
