"""A mixture of rewards end to end: soft prompts in a member, held-out rewards, page and export."""

import json

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.config.load import recipe_path

RECIPE = recipe_path("world_mixture")


def call(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two updates with a mixture; one member has soft prompts."""
    folder = tmp_path_factory.mktemp("mixture")
    tokens = folder / "photo.safetensors"
    sides = ("--positive", "Realistic photo", "--negative", "CG render")
    call("reward", "soft-prompts", "--reward", "world:reward", *sides, "--out", tokens)
    negative = tokens.with_suffix(".negative.safetensors")
    recipe = yaml.safe_load(RECIPE.read_text())
    phrases = {"positive": [str(tokens)], "negative": [str(negative)]}
    recipe["reward"]["members"][0]["control_phrases"] = phrases
    recipe["model"]["tune"] = "lora"
    recipe["method"]["anchor"]["reference_updates"] = 1
    recipe["rollout"]["num_inference_steps"], recipe["data"]["batch_size"] = 2, 2
    prompts = ["a red star on a navy background"]
    recipe["train"] |= {"num_steps": 2, "sample_every": 0, "sample_prompts": prompts}
    recipe["evaluate"] |= {"every": 2, "num_samples": 2, "num_samples_during": 2}
    recipe["evaluate"]["control_prompts"] = "world"
    recipe["evaluate"]["rewards"] = {"bright": {"name": "pixels", "statistic": "brightness"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    call("train", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


def test_every_member_has_curves_of_its_own(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    update = next(row for row in rows if row["event"] == "step")["metrics"]
    measured = next(row for row in rows if row["event"] == "evaluate")
    tags = EventAccumulator(str(run / "tensorboard")).Reload().Tags()["scalars"]
    for label in ("first", "second", "colour"):
        assert {f"{kind}_{label}" for kind in ("reward", "share", "gradient")} <= update.keys()
        assert f"reward_{label}" in measured
        assert any(tag.endswith(f"share_{label}") for tag in tags), tags
    assert "held_out_bright" in measured and "off_topic_held_out_bright" in measured


def test_the_page_and_the_model_card_name_every_member(run, tmp_path):
    members = "first (clip world:reward), second (clip world:second_reward)"
    named = f"mix of {members}, colour (pixels saturation, weight −0.2)"
    assert named in (run / "report.html").read_text()
    call("export", run, "--format", "diffusers", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"reward `{named}`" in card and str(run.parent) not in card
    rows = {line.split(" | ")[0][2:]: line for line in card.splitlines() if line.startswith("| ")}
    assert "one member of the mixture" in rows["reward_first"]
    for name in ("held_out_bright", "off_topic_held_out_bright"):
        assert "a reward that is never trained on" in rows[name]
