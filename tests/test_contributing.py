"""CONTRIBUTING's extensions, each from a file of one's own, through check, a two-step training and
compare."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from directalign.cli import app
from directalign.config.load import recipe_path

ROOT = Path(__file__).parents[1]
REWARD = """
import torch

def redness(images, prompts, strength=1.0):
    return strength * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))
"""
MODEL = """
from directalign.models.flux import Flux

class MyModel(Flux):
    pass
"""
METHOD = """
from directalign.config import ReFLConfig
from directalign.methods.refl import ReFL

class LastStep(ReFL):
    def __init__(self, model, reward, settings, rollout, last_steps):
        own = ReFLConfig(form=settings.form, last_steps=last_steps)
        super().__init__(model, reward, own, rollout)
"""


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-step run with a reward, a model and a method that the package has never
    seen."""
    folder = tmp_path_factory.mktemp("own")
    files = {"my_reward": REWARD, "my_model": MODEL, "my_method": METHOD}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    recipe = yaml.safe_load(recipe_path("world_srpo_lora").read_text())
    recipe["reward"] = {
        "name": "python",
        "path": f"{folder / 'my_reward.py'}:redness",
        "args": {"strength": 2.0},
        "differentiable": True,
    }
    recipe["model"]["architecture"] = f"{folder / 'my_model.py'}:MyModel"
    recipe["method"] = {
        "name": "python",
        "path": f"{folder / 'my_method.py'}:LastStep",
        "args": {"last_steps": 1},
    }
    recipe["rollout"]["num_inference_steps"], recipe["data"]["batch_size"] = 2, 2
    recipe["train"] |= {"num_steps": 2, "save_every": 0, "sample_every": 0}
    recipe["evaluate"] = {
        "judge": "none",
        "num_samples": 2,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "not estimated" in run("check", folder / "recipe.yaml")
    run("train", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


def test_the_run_measures_with_all_of_them(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["event"] == "evaluate"]
    assert [record["step"] for record in measured] == [0, 2]
    assert all("reward" in record for record in measured)
    steps = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in steps] == [1, 2]


def test_it_is_compared_with_its_base(trained: Path) -> None:
    out = trained.parent / "comparison"
    run("compare", trained, "--base", "--num-samples", "2", "--out", out)
    assert {"base", "run"} & set(json.loads((out / "summary.json").read_text())["models"])


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|json))", text):
        inside = ROOT / "src/directalign" / name
        is_example = name.split("/")[-1] == "yours.py"
        assert is_example or inside.exists() or (ROOT / name).exists(), name
