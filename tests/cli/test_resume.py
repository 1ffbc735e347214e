"""`train --resume` continues the run that is there: nothing set before is lost, no n is mixed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from directalign.config.load import load_run
from directalign.report.read import read_run
from directalign.report.run_page import changes
from directalign.report.runs_page import table


@pytest.fixture
def train(recipe, command):
    """Train recipe.yaml in `run`: four updates, measured on four images, two of them during it."""
    given = yaml.safe_load(recipe.read_text())
    evaluate = {"judge": "world", "num_samples": 4, "num_samples_during": 2, "every": 1}
    size = {"num_inference_steps": 2, "embedded_guidance": 1.0, "height": 64, "width": 64}
    given |= {"rollout": size, "evaluate": evaluate, "train": {"num_steps": 4, "save_every": 1}}
    recipe.write_text(yaml.safe_dump(given))
    Path("prompts.txt").write_text(
        "a red star on a white background\na blue circle on a white background\n"
    )

    def run(*words: str) -> Any:
        return command("train", recipe, "--out", "run", *words)

    return run


def ns(records: list[Any]) -> set[int]:
    """The numbers of images that rates of the records were measured on."""
    return {record["photo_rate"]["n"] for record in records}


def cut_back(step: int) -> None:
    """As if the run had been stopped after `step` updates."""
    for path in Path("run/checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    Path("run/summary.json").unlink()
    Path("run/lora.safetensors").unlink()


def test_a_resume_holds_what_was_set_and_names_what_differs(train, recipe):
    done = train("--set", "train.num_steps=2", "--set", "train.save_every=2")
    assert done.exit_code == 0, done.output
    recipe.write_text(recipe.read_text().replace("save_every: 1", "sample_every: 7"))
    again = train("--resume")
    assert again.exit_code == 0, again.output
    line = "recipe.yaml: not used where it differs from run/run.yaml: "
    assert f"{line}train.sample_every 0 -> 7; to change a key, repeat it as --set" in again.stderr
    held = load_run("run/run.yaml").train
    assert (held.num_steps, held.save_every, held.sample_every) == (2, 2, 0)
    more = train("--resume", "--set", "train.num_steps=3")
    assert more.exit_code == 0 and "run/run.yaml: train.num_steps 2 -> 3" in more.output
    assert [r["step"] for r in read_run(Path("run")).steps] == [1, 2, 3]
    refused = train("--resume", "--set", "evaluate.num_samples=2")
    assert refused.exit_code == 1
    assert "evaluate.num_samples 4 -> 2; restore these values" in refused.stderr
    assert load_run("run/run.yaml").evaluate.num_samples == 4


def test_measurements_of_a_run_that_ends_earlier_are_of_equal_samples(train):
    """The evaluation of step 2 was one of two images; as the last one it is made again, of four."""
    assert train().exit_code == 0
    cut_back(2)
    done = train("--resume", "--set", "train.num_steps=2")
    assert done.exit_code == 0, done.output
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["after"]["step"] == 2
    assert ns([summary["before"], summary["after"]]) == {4}
    run = read_run(Path("run"))
    assert [record["step"] for record in run.measured] == [0, 1, 2]
    assert ns(run.comparable) == {2}
    for change in changes(run):
        if isinstance(change["before"], dict):
            assert change["before"]["n"] == change["after"]["n"] == 4
    assert ns([numbers for _, ends in table([run]) for numbers in ends]) == {4}


def test_a_stopped_run_is_shown_on_equal_samples(train):
    """Before and after on its page, and beside a finished run, are of the images that all have."""
    assert train().exit_code == 0
    shutil.copytree("run", "whole")
    cut_back(3)
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 3]
    Path("run/metrics.jsonl").write_text("".join(kept))
    stopped, whole = read_run(Path("run")), read_run(Path("whole"))
    rate = next(change for change in changes(stopped) if change["key"] == "photo_rate")
    assert rate["before"]["n"] == rate["after"]["n"] == 2
    assert ns([numbers for _, ends in table([stopped, whole]) for numbers in ends]) == {2}
    assert ns(stopped.comparable) == ns(whole.comparable) == {2}
