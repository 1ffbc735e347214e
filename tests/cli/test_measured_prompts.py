"""A run that is measured on other prompts than those it trains on, through the commands."""

import json
from pathlib import Path
from typing import Any

import pytest

SIZE = ("num_samples=3", "num_samples_during=2", "every=1", "batch_size=3", "diversity_prompts=1")
OTHERS = "evaluate.prompts=others.txt"


@pytest.fixture
def train(command, recipe):
    """Train recipe.yaml with overrides, and give the records of its evaluations."""
    Path("others.txt").write_text("a map of a city\na bowl of soup\na tree in the snow\n")

    def train(out: str, *overrides: str) -> list[dict[str, Any]]:
        sets = [f"--set={each}" for each in (*(f"evaluate.{e}" for e in SIZE), *overrides)]
        result = command("train", recipe, *sets, "--out", out)
        assert result.exit_code == 0, result.output
        records = map(json.loads, Path(out, "metrics.jsonl").read_text().splitlines())
        return [each for each in records if each["event"] == "evaluate"]

    return train


def test_exactly_they_are_measured_and_nothing_else_changes(train, command, recipe):
    usual, others, trained = (
        train("usual"),
        train("others", OTHERS),
        train("trained", "data.prompts=others.txt"),
    )
    assert others[0]["reward"] == trained[0]["reward"] != usual[0]["reward"]
    assert others[0]["diversity"] == trained[0]["diversity"] != usual[0]["diversity"]
    weights = [Path(out, "lora.safetensors").read_bytes() for out in ("usual", "others", "trained")]
    assert weights[0] == weights[1] != weights[2]
    assert "prompts: others.txt" in Path("others/run.yaml").read_text().split("evaluate:")[1]
    again = ("train", recipe, "--resume", "--out", "others", "--set", "train.num_steps=3")
    result = command(*again, "--set", "evaluate.prompts=null")
    assert result.exit_code == 1 and "evaluate.prompts 'others.txt' -> None" in result.stderr
    assert "evaluate.prompts" not in command(*again).stderr
    result = command("evaluate", "others", "--num-samples", 6)
    assert result.exit_code == 0, result.output
    lines = Path("others/evaluation/results.jsonl").read_text().splitlines()
    measured = {json.loads(line)["prompt"] for line in lines}
    assert measured == set(Path("others.txt").read_text().splitlines())
    record = json.loads(Path("others/evaluation/comparison.json").read_text())
    assert record["prompts"]["source"] == "others.txt"


def test_check_lists_them_and_warns_of_those_that_are_trained_on(command, recipe):
    Path("others.txt").write_text("a map of a city\na red star\n")

    def check(source: str) -> Any:
        result = command("check", recipe, "--set", f"evaluate.prompts={source}")
        assert result.exit_code == 0, result.output
        return result

    found = check("others.txt")
    assert "2 from others.txt" in found.stdout
    assert (
        "warning: evaluate.prompts: others.txt: 1 of its 2 prompts are trained on" in found.stderr
    )
    for source, finding in (
        ("world2", "60 from world2"),  # of a world those that runs are measured on
        ("world2:held_out", "90 from world2:held_out"),
        ("hf:owner/name", "hf:owner/name, read when the run starts"),
    ):
        found = check(source)
        assert finding in found.stdout and "warning: evaluate.prompts" not in found.stderr
