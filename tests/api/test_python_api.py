"""The rest of the Python API: a fast import, recipes, rewards, comparisons; its page."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import directalign
from directalign import config
from directalign.cli import app

ROOT = Path(__file__).parents[2]
TINY = {
    "train": {"num_steps": 2, "save_every": 0, "sample_prompts": ["a red star"]},
    "train.learning_rate": 0.01,
    "data.batch_size": 2,
    "rollout": {"num_inference_steps": 2},
    "method.anchor.reference_updates": 1,
    "evaluate": {"num_samples": 2, "every": 0},
}


def test_the_package_is_imported_without_torch():
    code = """
import sys, directalign
assert {"torch", "pydantic", "diffusers"}.isdisjoint(sys.modules), "an import at the top"
assert set(directalign.__all__) < set(dir(directalign)) and directalign.__version__
try:
    directalign.aling
except AttributeError as error:
    assert "aling" in str(error)
assert directalign.DirectAlignError.__mro__[1] is ValueError and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    from directalign import align

    assert directalign.align is align and align.__module__ == "directalign.api"


def test_a_recipe_is_read_with_overrides_and_trains_as_the_command_does(tmp_path):
    run = directalign.Run.from_recipe("world_srpo_lora", TINY)
    assert isinstance(run.config, config.RunConfig) and run.config.train.num_steps == 2
    steps = []
    summary = run.train(tmp_path / "a", callbacks=[steps.append], progress=False)
    assert summary == json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["num_steps"] == len(steps) == 2 and summary["after"]["step"] == 2
    words = ["train", "world_srpo_lora", "--out", str(tmp_path / "b")]
    words += [word for each in run.overrides for word in ("--set", each)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for name in ("run.yaml", "lora.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(directalign.DirectAlignError, match="already holds a run"):
        run.train(tmp_path / "a")
    plain = directalign.Run.from_recipe("world_srpo_lora")
    once = plain.train(tmp_path / "a", resume=True, progress=False)
    assert once["num_steps"] == 2  # of run.yaml: what was set before is not dropped
    assert (tmp_path / "a" / "run.yaml").read_bytes() == (tmp_path / "b" / "run.yaml").read_bytes()

    found = directalign.compare(
        {"Ours": tmp_path / "a", "Theirs": tmp_path / "b"},
        tmp_path / "both",
        base=True,
        num_samples=2,
        rewards={"light": {"name": "pixels", "statistic": "brightness"}},
        rollout={"num_inference_steps": 1},
        progress=False,
    )
    assert set(found["models"]) == {"base", "ours", "theirs"}
    ours, theirs = found["models"]["ours"], found["models"]["theirs"]
    assert ours["score_light"]["value"] == theirs["score_light"]["value"]
    for wrong, message in (
        ({"num_samples": 0}, "num_samples is 0: give 1 or more"),
        ({"positive": "Realistic photo"}, "positive: 'Realistic photo' is no list"),
    ):
        with pytest.raises(directalign.DirectAlignError, match=message):
            directalign.compare([tmp_path / "a"], tmp_path / "c", **wrong)


def test_recipes_are_refused_by_name_and_key(tmp_path):
    with pytest.raises(directalign.DirectAlignError, match="did you mean world_srpo"):
        directalign.Run.from_recipe("world_srpoo")
    with pytest.raises(directalign.DirectAlignError, match="did you mean 'num_steps'"):
        directalign.Run.from_recipe("world_srpo", {"train": {"num_step": 3}})
    section = directalign.Run.from_recipe("world_srpo", {"model.lora": config.LoRAConfig(rank=4)})
    assert section.config.model.lora.rank == 4


def test_rewards_are_loaded_from_names_sections_and_functions():
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    named = directalign.load_reward("world:reward")
    section = directalign.load_reward({"name": "clip", "path": "world:reward"})
    settings = directalign.load_reward(config.ClipConfig(path="world:reward"))
    scores = [each.score(each.encode(images), ["a", "b"]) for each in (named, section, settings)]
    assert scores[0].shape == (2,) and torch.equal(scores[0], scores[1])
    assert torch.equal(scores[1], scores[2]) and scores[0].requires_grad
    assert directalign.load_reward(named) is named
    own = directalign.load_reward(lambda images, prompts: images.mean((1, 2, 3)))
    assert own.differentiable and own.score(own.encode(images), ["a", "b"]).requires_grad
    with pytest.raises(directalign.DirectAlignError, match="reward: "):
        directalign.load_reward({"name": "clap"})


def test_every_name_is_documented():
    """Docstrings have the parts of an API reference; the manual names all there is."""
    page = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    functions = [directalign.align, directalign.compare, directalign.load_reward]
    functions += [directalign.save_lora, directalign.Run.from_recipe, directalign.Run.train]
    for each in functions:
        text = inspect.getdoc(each) or ""
        assert "Raises:" in text and "Examples:" in text, each
        for name in inspect.signature(each).parameters:
            documented = re.search(rf"^    ([a-z_, ]+, )?{name}(, [a-z_]+)*:", text, re.MULTILINE)
            assert name in ("self", "cls") or documented, (each, name)
    for name in directalign.__all__:
        assert f"`{name}" in page or f"directalign.{name}" in page, name
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(block, "docs/python_api.md", "exec")
