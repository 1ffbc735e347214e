"""`directalign reward bias-directions`: from images, probes, texts and runs to a file."""

import json
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

Fit = Callable[..., Result]
CAPTIONS = all_captions()[:6]
PHRASES = ("--keep-words", "Realistic photo", "--against", "CG render")


@pytest.fixture
def fit(command, recipe, clip_folder):
    """Call the command for a tiny CLIP, in a folder with a recipe and images.

    `before` has six captioned images, `after` the same with a red cast.
    """
    images = render(scenes_of(CAPTIONS), torch.Generator().manual_seed(0))
    cast = (images + 0.2 * torch.tensor([1.0, -0.5, -0.5])[:, None, None]).clamp(0, 1)
    for name in ("before", "after"):
        Path(name).mkdir()
    for i, caption in enumerate(CAPTIONS):
        for name, side in (("before", images), ("after", cast)):
            save_png(side[i], Path(name) / f"{i}.png")
            (Path(name) / f"{i}.txt").write_text(caption)
    return lambda *words: command("reward", "bias-directions", "--reward", clip_folder, *words)


def directions(name: str) -> torch.Tensor:
    return read_directions(Path(name), "x").rows


def test_the_command_and_a_training_with_the_projected_reward(fit, command, recipe, clip_folder):
    folders = ["--before", "before", "--after", "after", "--out", "made/d.safetensors"]
    words = ["--reward", str(clip_folder), *folders, *PHRASES, "--keep-examples", "world:photo/cg"]
    done = command("reward", "bias-directions", *words)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "made/d.safetensors" and "of the shift is shared by all" in lines[0]
    found = read_directions(Path("made/d.safetensors"), "x")
    assert found.rows.shape == (1, 8)
    assert found.fingerprint == fingerprint(ClipReward.load(str(clip_folder)).model)
    assert found.made["kept"] == "Realistic photo against CG render, world:photo/cg"
    assert found.made["images"] == "6"
    given, path = yaml.safe_load(recipe.read_text()), str(clip_folder)
    given["reward"] = {"name": "clip", "path": path, "project_out": "made/d.safetensors"}
    recipe.write_text(yaml.safe_dump(given))
    trained = command("train", recipe, "--out", "run")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(Path("run/summary.json").read_text())["num_steps"] == 2


def test_probes_and_components(fit):
    probes = ["--probe", "red tint", "--probe", "blur", "--out", "p.safetensors"]
    assert fit("--before", "before", *probes).exit_code == 0
    components = ["--components", 3, "--out", "c.safetensors"]
    assert fit("--before", "before", "--after", "after", *components).exit_code == 0
    probed, fitted = directions("p.safetensors"), directions("c.safetensors")
    assert (len(probed), len(fitted)) == (2, 3)
    assert (fitted[:1] @ probed.T).norm() > 0.9, "the probe is the change between the folders"


def test_texts_alone(fit, clip_folder):
    assert fit("--prompts", "world", *PHRASES, "--out", "t.safetensors").exit_code == 0
    rows, reward = directions("t.safetensors"), ClipReward.load(str(clip_folder))
    photo, render = (
        reward.encode_text([f"{phrase}. {caption}" for caption in CAPTIONS]).mean(0)
        for phrase in ("Realistic photo", "CG render")
    )
    wanted = (photo - render) / (photo - render).norm()
    assert rows.shape == (1, 8) and (rows @ wanted).abs().item() < 0.5 < (rows @ photo).item()


def test_a_run_is_sampled_before_and_after(fit, command, recipe):
    trained = command("train", recipe, "--out", "run", "--set", "train.learning_rate=0.01")
    assert trained.exit_code == 0, trained.output
    result = fit("--after", "run", "--num-samples", 3, "--out", "r.safetensors")
    assert result.exit_code == 0 and "along the directions" in result.output, result.output
    assert read_directions(Path("r.safetensors"), "x").made["images"] == "3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--after: missing"),
        ("--probe blur", "--probe: changes the images of --before itself"),
        ("--before before --after after --keep-words Photo", "--keep-words and --against"),
        ("--before before --after before", "moved in no common direction"),
        ("--prompts world --reward recipe.yaml", "pixels takes no project_out"),
    ],
)
def test_wrong_options_are_one_line(fit, options, message):
    result = fit(*options.split())
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1
