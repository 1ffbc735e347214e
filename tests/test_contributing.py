"""CONTRIBUTING's extensions, each from a file of one's own, through check, a two-step training and
compare."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import directalign
from directalign.cli import app
from directalign.config import UserMetricConfig
from directalign.config.load import load_run, recipe_path
from directalign.evaluation.scores import EvalSample, MetricInput, per_image, user_metric_functions
from directalign.models import load_model
from directalign.report import write_page
from directalign.types import DirectAlignError

ROOT = Path(__file__).parents[1]
REWARD = """
import torch

def redness(images, prompts, strength=1.0):
    return strength * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))

class Module(torch.nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(strength))
        self.dropout = torch.nn.Dropout(0.9)
    def forward(self, images, prompts):
        return self.dropout(redness(images, prompts, self.factor))
"""
METRIC = """
def redness(images, prompts):
    '''Mean red minus the mean of
    green and blue, -1 to 1.

    More text.'''
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))

redness.higher_is_better = False

class Even:
    unit = "share"
    higher_is_better = True
    def __init__(self, value=0.0):
        self.value = value
    def __call__(self, images, prompts):
        return [self.value] * len(prompts)
"""
MODEL = """
from directalign.models.flux import Flux

class MyModel(Flux):
    def __init__(self, source, model, device, seed, title="FLUX"):
        super().__init__(source, model, device, seed)
        self.title = title
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
def trained(tmp_path_factory, traced):
    """A two-step run with a reward, a metric, a model and a method of the user's files."""
    folder = tmp_path_factory.mktemp("own")
    files = {"my_reward": REWARD, "my_metric": METRIC, "my_model": MODEL, "my_method": METHOD}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    recipe = yaml.safe_load(recipe_path("world_srpo_lora").read_text())
    recipe["reward"] = {
        "name": "python",
        "path": f"{folder / 'my_reward.py'}:redness",
        "args": {"strength": 2.0},
        "differentiable": True,
    }
    own_model = {"architecture": f"{folder / 'my_model.py'}:MyModel", "args": {"title": "Mine"}}
    recipe["model"] |= own_model
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
        "metrics": [
            f"{folder / 'my_metric.py'}:redness",
            {"path": f"{folder / 'my_metric.py'}:Even", "args": {"value": 1.0}},
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "not estimated" in run("check", folder / "recipe.yaml")
    absent = f"evaluate.metrics=[{folder}/absent.py:fn]"
    refused = CliRunner().invoke(app, ["check", str(folder / "recipe.yaml"), "--set", absent])
    assert refused.exit_code == 1 and "evaluate.metrics: " in refused.output
    run("train", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


def test_the_run_measures_with_all_of_them(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["event"] == "evaluate"]
    assert [record["step"] for record in measured] == [0, 2]
    for record in measured:  # the reward is twice the metric
        assert record["reward"] == pytest.approx(2 * record["redness"], abs=1e-6)
        assert record["Even"]["value"] == 1
    steps = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in steps] == [1, 2]
    write_page(trained)  # by another process than that of the training: without the user's file
    assert "Mean red minus the mean of green and blue" in (trained / "report.html").read_text()


def test_a_torch_module_is_a_reward_too(trained):
    folder, images = trained.parent, torch.rand(2, 3, 8, 8, requires_grad=True)
    section = {"name": "python", "args": {"strength": 2.0}, "differentiable": True}
    scores = []
    for name in ("redness", "Module"):
        path = f"{folder / 'my_reward.py'}:{name}"
        reward = directalign.load_reward({**section, "path": path})
        scores.append(reward.score(reward.encode(images), ["a", "b"]))
    assert torch.equal(*scores) and scores[1].requires_grad


def test_arguments_that_a_class_does_not_take_are_refused(trained):
    run = load_run(trained / "run.yaml", ["model.args={titel: x}"])
    with pytest.raises(
        DirectAlignError, match=r"model\.args: .*cannot be constructed with .*titel"
    ):
        load_model(run.model, "cpu")
    metric = UserMetricConfig(path=f"{trained.parent / 'my_metric.py'}:Even", args={"x": 1})
    with pytest.raises(DirectAlignError, match=r"evaluate\.metrics: .*with args"):
        user_metric_functions([metric], 2)
    run = load_run("world_srpo", ["model.args={title: x}"])
    with pytest.raises(DirectAlignError, match=r"model\.args: title is for a class of your own"):
        load_model(run.model, "cpu")


def test_it_is_compared_with_its_base(trained):
    out, own = trained.parent / "comparison", trained.parent / "own.py"
    own.write_text("def blueness(images, prompts):\n    return images[:, 2].mean((1, 2))\n")
    words = ("compare", trained, "--base", "--num-samples", "2", "--metric", f"{own}:blueness")
    run(*words, "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    about = {"label": "Redness", "role": "drift", "better": -1, "unit": ""}
    scale = "Mean red minus the mean of green and blue, -1 to 1."
    assert summary["names"]["redness"] == {**about, "scale": scale}
    assert summary["names"]["Even"]["unit"] == "share" and "blueness" in summary["names"]
    assert len(summary["models"]) == 2
    for found in summary["models"].values():
        assert found["red_cast"]["value"] == pytest.approx(found["redness"]["value"] * 2 / 3)
    assert scale in (out / "report.html").read_text()
    own.write_text(own.read_text().replace("2]", "1]"))
    result = CliRunner().invoke(app, [str(word) for word in (*words, "--out", out)])
    assert result.exit_code == 1 and "metrics.metric-blueness.sha256 was" in result.output


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("", "absent", "has no function 'absent'"),
        ("number = 3", "number", "is a int, which cannot be called"),
        ("def entropy(images, prompts): ...", "entropy", "another metric is called entropy"),
        ("def fn(images, prompts): ...\nfn.unit = 1", "fn", "unit 1"),
        ("def fn(images, prompts): return [1.0]", "fn", "numbers, one per image; it returned"),
        ("def fn(images, prompts): return images[:, 0, 0, 0] / 0", "fn", "a finite score"),
        ("def fn(images): ...", "fn", "fails (TypeError"),
    ],
)
def test_a_metric_that_cannot_work_is_refused(tmp_path, text, name, problem):
    file = tmp_path / "own.py"
    file.write_text(text)
    samples = [EvalSample(index, "a red star", index) for index in range(2)]
    with pytest.raises(DirectAlignError, match=f"evaluate.metrics: .*{re.escape(problem)}"):
        functions = user_metric_functions([UserMetricConfig(path=f"{file}:{name}")], 2)
        per_image(functions, MetricInput(samples, torch.ones(2, 3, 8, 8)))


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|json))", text):
        inside = ROOT / "src/directalign" / name
        is_example = name.split("/")[-1] == "yours.py"
        assert is_example or inside.exists() or (ROOT / name).exists(), name
