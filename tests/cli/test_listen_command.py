"""`directalign listen` from the command line: what it leaves trains as reward.path, and what it cannot do is one line that names why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from transformers import CLIPModel, CLIPProcessor

from tiny_clip import clip_folder

__all__ = ["clip_folder"]

ASKED = ("--images", "world:photo/cg", "--count", "24", "--num-steps", "3", "--batch-size", "4", "--positive", "Realistic photo", "--negative", "CG render")


def test_what_it_leaves_trains_as_a_reward(clip_folder: Path, recipe: Path, command: Callable[..., Result], tmp_path: Path) -> None:
    told = command("listen", "--reward", clip_folder, *ASKED, "--out", "taught")
    assert told.exit_code == 0, told.output
    assert "responsiveness" in told.output and told.output.splitlines()[-1] == "taught"
    record = json.loads((tmp_path / "taught" / "listen.json").read_text())
    assert record["words"]["positive"] == ["Realistic photo"] and record["lessons"]["seed"] == 0
    assert {"responsiveness", "auc", "content", "angle", "pixel_angle", "bias"} <= set(record["before"]) == set(record["after"])
    assert isinstance(CLIPModel.from_pretrained("taught"), CLIPModel) and isinstance(CLIPProcessor.from_pretrained("taught"), CLIPProcessor)
    words = '{"positive": ["Realistic photo"], "negative": ["CG render"]}'
    sets = ["reward={name: clip, path: taught}", "method.form=relative", f"method.words={words}"]
    trained = command("train", recipe, "--out", "run", *[part for each in sets for part in ("--set", each)])
    assert trained.exit_code == 0, trained.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_steps"] == 2
    again = command("listen", "--reward", clip_folder, *ASKED, "--out", "taught")
    assert again.exit_code == 1 and "--out taught exists already" in again.output
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".taught")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--images": "nowhere"}, "--images: nowhere: no folder wanted/"),
        ({"--images": "world:photo/photo"}, "--images: world:photo/photo"),
        ({"--reward": "nowhere"}, "--reward nowhere: no config.json"),
        ({"--negative": None}, "--positive, --negative"),
        ({"--count": "2"}, "different captions"),
        ({"--learning-rate": "1e30"}, "smaller --learning-rate"),
    ],
)
def test_wrong_inputs_are_one_line_and_leave_nothing(
    clip_folder: Path, recipe: Path, command: Callable[..., Result], tmp_path: Path, changed: dict[str, str | None], said: str
) -> None:
    before = sorted(tmp_path.iterdir())
    asked = {"--reward": str(clip_folder), **dict(zip(ASKED[::2], ASKED[1::2], strict=True)), "--out": "taught"} | changed
    told = command("listen", *[part for name, value in asked.items() if value is not None for part in (name, value)])
    assert told.exit_code == 1 and said in told.output and len(told.output.strip().splitlines()) == 1, told.output
    assert sorted(tmp_path.iterdir()) == before
