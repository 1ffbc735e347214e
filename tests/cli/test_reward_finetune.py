"""`directalign reward finetune`: its folder trains as reward.path; mistakes are one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from transformers import CLIPModel, CLIPProcessor

Finetune = Callable[..., Result]

OPTIONS = {
    "--images": "world:photo/cg",
    "--count": "24",
    "--num-steps": "3",
    "--batch-size": "4",
    "--positive": "Realistic photo",
    "--negative": "CG render",
    "--out": "tuned",
}


@pytest.fixture
def finetune(recipe, command, clip_folder):
    """Call the command with `OPTIONS` for a tiny CLIP; None removes an option."""

    def call(**changed: str | None) -> Result:
        new = {f"--{name}": value for name, value in changed.items()}
        options = {"--reward": str(clip_folder), **OPTIONS, **new}
        words = [word for pair in options.items() if pair[1] is not None for word in pair]
        return command("reward", "finetune", *words)

    return call


def test_the_folder_trains_as_a_reward(finetune, recipe, command, tmp_path):
    result = finetune()
    assert result.exit_code == 0, result.output
    assert "responsiveness" in result.output and result.output.splitlines()[-1] == "tuned"
    record = json.loads(Path("tuned/finetune.json").read_text())
    assert record["control_phrases"]["positive"] == ["Realistic photo"]
    assert record["config"]["seed"] == 0 and set(record["before"]) == set(record["after"])
    measures = {"responsiveness", "auc", "content", "angle", "pixel_angle", "bias"}
    assert measures <= set(record["before"])
    assert isinstance(CLIPModel.from_pretrained("tuned"), CLIPModel)
    assert isinstance(CLIPProcessor.from_pretrained("tuned"), CLIPProcessor)
    phrases = '{"positive": ["Realistic photo"], "negative": ["CG render"]}'
    sets = [
        "--set=reward={name: clip, path: tuned}",
        "--set=method.form=relative",
        f"--set=method.control_phrases={phrases}",
    ]
    trained = command("train", recipe, "--out", "run", *sets)
    assert trained.exit_code == 0, trained.output
    assert json.loads(Path("run/summary.json").read_text())["num_steps"] == 2
    again = finetune()
    assert again.exit_code == 1 and "--out tuned exists already" in again.output
    assert not list(tmp_path.glob(".tuned*"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": "nowhere"}, "--reward nowhere: no config.json"),
        ({"negative": None}, "--positive, --negative"),
        ({"learning-rate": "1e8"}, "smaller --learning-rate"),
    ],
)
def test_wrong_inputs_are_one_line_and_write_nothing(finetune, tmp_path, changed, message):
    before = sorted(tmp_path.iterdir())
    result = finetune(**changed)
    assert result.exit_code == 1 and message in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1 and sorted(tmp_path.iterdir()) == before
