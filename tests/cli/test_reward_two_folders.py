"""`directalign reward phrases | finetune | bias-directions` on --wanted and --unwanted."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.toyworld.scenes import draw_scenes, render

FOLDERS = ["--wanted", "mine", "--unwanted", "theirs"]
WORDS = ["--positive", "Photo", "--negative", "Cartoon"]
COMMANDS = {
    "phrases": [*WORDS, "--out", "out"],
    "finetune": [*WORDS, "--num-steps", "1", "--out", "out"],
    "bias-directions": ["--prompts", "world", "--out", "out"],
}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """mine/ and theirs/: twelve captioned renders each, of equal names and other scenes."""
    monkeypatch.chdir(tmp_path)
    for seed, side in enumerate(("mine", "theirs")):
        Path(side).mkdir()
        scenes = draw_scenes(12, torch.Generator().manual_seed(seed))
        images = render(scenes, torch.Generator().manual_seed(seed))
        for number, (image, caption) in enumerate(zip(images, scenes.captions(), strict=True)):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(f"{side}/{number}.png")
            Path(f"{side}/{number}.txt").write_text(caption)


def call(command: str, *more: str) -> Result:
    words = ["reward", command, "--reward", "world:reward", *COMMANDS[command], *more]
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("command", COMMANDS)
def test_two_folders_take_the_place_of_one(command):
    result = call(command, *FOLDERS)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("without pairs") == 1
    assert "12 of 12 images of one name have different captions" in result.stderr
    if command == "phrases":
        found = json.loads(Path("out/phrases.json").read_text("utf-8"))
        assert (found["images"], found["paired"]) == ("mine and theirs", False)
        assert set(FOLDERS) <= set(shlex.split(found["command"]))
    elif command == "finetune":
        found = json.loads(Path("out/finetune.json").read_text("utf-8"))
        assert (found["images"], found["paired"]) == ("mine and theirs", False)


@pytest.mark.parametrize("command", COMMANDS)
def test_mistakes_are_one_line(command):
    one = "--keep-examples" if command == "bias-directions" else "--images"
    Path("mine/3.txt").unlink()
    Path("empty").mkdir()
    for options, message in (
        (FOLDERS[2:], "--unwanted theirs: give --wanted DIR and --unwanted DIR"),
        ([*FOLDERS, one, "world"], f"{one} world: give either this or --wanted and --unwanted"),
        ([*FOLDERS[:3], "mine"], "--unwanted mine: holds the wanted images; give another one"),
        ([*FOLDERS[:3], "empty", "--caption", "absent"], "--unwanted: empty: no images"),
        (FOLDERS, "--wanted: mine: 3.png: no caption: 3.txt is missing (1 such); write it, or let"),
        ([*FOLDERS, "--caption", "absent"], "--caption absent: no such folder; give blip, or a"),
    ):
        result = call(command, *options)
        assert result.exit_code == 1 and message in result.stderr, result.output
        assert result.stderr.count("\n") == 1 and not Path("out").exists()
