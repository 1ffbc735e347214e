"""`directalign reward finetune` from the command line: what it leaves trains as reward.path, and
what it cannot do is one line that names why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from transformers import CLIPModel, CLIPProcessor

from tiny_clip import clip_folder

__all__ = ["clip_folder"]

OPTIONS = (
    "--images",
    "world:photo/cg",
    "--count",
    "24",
    "--num-steps",
    "3",
    "--batch-size",
    "4",
    "--positive",
    "Realistic photo",
    "--negative",
    "CG render",
)


def test_what_it_leaves_trains_as_a_reward(
    clip_folder: Path, recipe: Path, command: Callable[..., Result], tmp_path: Path
) -> None:
    result = command("reward", "finetune", "--reward", clip_folder, *OPTIONS, "--out", "tuned")
    assert result.exit_code == 0, result.output
    assert "responsiveness" in result.output and result.output.splitlines()[-1] == "tuned"
    record = json.loads((tmp_path / "tuned" / "finetune.json").read_text())
    assert (
        record["control_phrases"]["positive"] == ["Realistic photo"]
        and record["config"]["seed"] == 0
    )
    assert (
        {"responsiveness", "auc", "content", "angle", "pixel_angle", "bias"}
        <= set(record["before"])
        == set(record["after"])
    )
    assert isinstance(CLIPModel.from_pretrained("tuned"), CLIPModel) and isinstance(
        CLIPProcessor.from_pretrained("tuned"), CLIPProcessor
    )
    words = '{"positive": ["Realistic photo"], "negative": ["CG render"]}'
    sets = [
        "reward={name: clip, path: tuned}",
        "method.form=relative",
        f"method.control_phrases={words}",
    ]
    trained = command(
        "train", recipe, "--out", "run", *[part for each in sets for part in ("--set", each)]
    )
    assert trained.exit_code == 0, trained.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_steps"] == 2
    again = command("reward", "finetune", "--reward", clip_folder, *OPTIONS, "--out", "tuned")
    assert again.exit_code == 1 and "--out tuned exists already" in again.output
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".tuned")]


@pytest.mark.parametrize(
    ("changed", "message"),
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
    clip_folder: Path,
    recipe: Path,
    command: Callable[..., Result],
    tmp_path: Path,
    changed: dict[str, str | None],
    message: str,
) -> None:
    before = sorted(tmp_path.iterdir())
    options = {
        "--reward": str(clip_folder),
        **dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)),
        "--out": "tuned",
    } | changed
    result = command(
        "reward",
        "finetune",
        *[part for name, value in options.items() if value is not None for part in (name, value)],
    )
    assert (
        result.exit_code == 1
        and message in result.output
        and len(result.output.strip().splitlines()) == 1
    ), result.output
    assert sorted(tmp_path.iterdir()) == before
