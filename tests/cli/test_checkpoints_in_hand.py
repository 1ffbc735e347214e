"""Any checkpoint of a run, at any strength, is sampled, evaluated, compared and exported."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from finished_runs import image
from tiny import SIZE, write_sd, write_sdxl

REWARD = """
import os, signal
from pathlib import Path

def score(images, prompts):
    lines, sent = Path("run/metrics.jsonl"), Path("run/.stopped")
    if images.requires_grad and lines.read_text().count('"step",') == 2 and not sent.exists():
        sent.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return images.mean((1, 2, 3))
"""
"""Brightness, and a signal to stop in the third update."""
WRITERS = {"sd": write_sd, "sdxl": write_sdxl}
PIPELINES: dict[str, Any] = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
PROMPT = ("--prompt", "a red star", "--seed", "7")


def write_recipe(architecture: str, tune: str, model: Path, **more: Any) -> None:
    given: dict[str, Any] = {
        "name": "tiny",
        "model": {"architecture": architecture, "path": str(model), "tune": tune} | more,
        "reward": {"name": "python", "path": "reward.py:score", "differentiable": True},
        "method": {"form": "absolute"},
        "rollout": {"num_inference_steps": 2, "height": SIZE, "width": SIZE},
        "data": {"prompts": "prompts.txt"},
        "train": {"num_steps": 6, "learning_rate": 0.05, "max_grad_norm": 1.0, "save_every": 1},
        "evaluate": {"num_samples": 1},
    }
    Path("reward.py").write_text(REWARD)
    Path("recipe.yaml").write_text(yaml.safe_dump(given))
    Path("prompts.txt").write_text("a red star\n")


@pytest.fixture(params=[("sd", "lora"), ("sdxl", "full")], ids=["sd-lora", "sdxl-full"])
def stopped(request, tmp_path, monkeypatch, command):
    """The folder of a run that SIGTERM ended after three of six updates, and its base."""
    architecture, tune = request.param
    monkeypatch.chdir(tmp_path)
    model = WRITERS[architecture](tmp_path / "model")
    write_recipe(architecture, tune, model, lora={"rank": 2, "alpha": 4})
    ended = command("train", "recipe.yaml", "--out", "run")
    assert ended.exit_code == 130 and "after step 3 of 6" in ended.stderr, ended.output
    assert not Path("run/summary.json").exists()
    return architecture, tune, model


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def by_record(folder: str) -> np.ndarray:
    """The image of the diffusers call in images.jsonl."""
    names: dict[str, Any] = {}
    exec(json.loads(Path(folder, "images.jsonl").read_text())["diffusers"]["code"], names)
    return np.asarray(names["image"]).astype(int)


def test_a_stopped_run_is_sampled_and_exported_at_any_step(stopped, command):
    architecture, tune, model = stopped

    def call(*words: Any) -> Any:
        done = command(*words)
        assert done.exit_code == 0, done.output
        return done

    newest = call("sample", "run", *PROMPT)
    line = "run: not finished, taking its newest checkpoint, step 3 of 6"
    assert newest.stderr.count(line) == 1
    found = [newest.stdout, *(call("sample", "run", *PROMPT, *w.split()).stdout for w in (
        "--step 2", "--step 2 --strength 0.5", "--step 2 --strength 0", "--base"
    ))]  # fmt: skip
    names = ["images", *(f"images-{number}" for number in range(2, 6))]
    assert [each.splitlines()[-1] for each in found] == [f"{name}/0000-seed7.png" for name in names]
    three, two, half, none, base = (pixels(f"{name}/0000-seed7.png") for name in names)
    assert np.abs(three - two).max() > 1 and np.abs(two - half).max() > 1
    assert np.array_equal(none, base) and np.abs(half - base).max() > 1

    whole = ("--format", "folder", "--dtype", "float32", *(("--merge",) if tune == "lora" else ()))
    for weights in (("--step", "2"), ("--step", "2", "--strength", "0.5")):
        call("export", "run", *weights, *whole)
        call("export", "run", *weights, "--format", "checkpoint", "--dtype", "float32")
        if tune == "lora":
            call("export", "run", *weights, "--format", "comfyui")
            call("export", "run", *weights, "--format", "diffusers")
    for folder, sampled in (("images-2", two), ("images-3", half)):
        assert np.abs(by_record(folder) - sampled).max() <= 1
    pipeline = PIPELINES[architecture]
    for suffix, name in (("", "tiny_step_2"), ("-strength-0.5", "tiny_step_2_strength_0_5")):
        file = Path(f"run/export/checkpoint-step-2{suffix}/{name}.safetensors")
        one = image(pipeline.from_single_file(str(file), config=str(model)))
        many = image(pipeline.from_pretrained(f"run/export/folder-step-2{suffix}"))
        assert np.abs(one - many).max() <= 1e-4
        untrained = image(pipeline.from_pretrained(model))
        assert np.abs(one - untrained).max() > 1e-2
    card = Path("run/export/checkpoint-step-2-strength-0.5/README.md").read_text()
    assert "# tiny, step 2, strength 0.5" in card and "directalign evaluate RUN --step 2" in card
    code = card.split("```python\n")[1].split("```")[0].replace("<path of model>", str(model))
    os.chdir("run/export/checkpoint-step-2-strength-0.5")
    exec(code.split("image = ")[0], names := {})
    assert isinstance(names["pipe"], pipeline)


def test_a_stopped_run_is_evaluated_and_compared_by_source(stopped, command):
    options = ("--num-samples", "2", "--prompts", "prompts.txt", "--seeds-per-prompt", "2")
    done = command("evaluate", "run", "--step", "1", "--strength", "0.5", *options)
    assert done.exit_code == 0 and done.stdout.endswith("run/evaluation-step-1-strength-0.5\n")
    words = ["run@1", "run@2:0.5", "last=run", "none=run@2:0"]
    done = command("compare", *words, "--base", "--out", "c", *options)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("not finished") == 1
    models = json.loads(Path("c/comparison.json").read_text())["models"]
    labels = ["Base model", "tiny, step 1", "tiny, step 2, strength 0.5", "last", "none"]
    assert [each["label"] for each in models] == labels
    first = {
        each["label"]: Path(f"c/images/{each['key']}/00000.png").read_bytes() for each in models
    }
    assert first["none"] == first["Base model"] and len(set(first.values())) == 4
    again = command("compare", "run@1", "run@2:0.25", *words[2:], "--base", "--out", "c", *options)
    assert again.exit_code == 1 and "strength" in again.stderr


WRONG = {
    "sample run --step 9 --prompt a": "--step 9: run has no checkpoint of it, but of 1, 2, 3",
    "sample run --strength 11 --prompt a": "--strength 11: give a number from 0",
    "sample run --base --step 1 --prompt a": "--step, --strength: for the trained weights of",
    "sample model --step 1 --prompt a": "--step, --strength: for the trained weights of a run",
    "export run --step 9 --format diffusers": "--step 9: run has no checkpoint of it",
    "compare run@x --out c": "run@x: write a run's checkpoint as run@10, its strength as",
}


def test_what_a_run_does_not_have_is_one_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_recipe("sd", "lora", write_sd(tmp_path / "model"), lora={"rank": 2})
    assert command("train", "recipe.yaml", "--out", "run").exit_code == 130
    before = sorted(tmp_path.rglob("*"))
    for words, message in WRONG.items():
        found = command(*words.split())
        assert found.exit_code == 1 and message in found.stderr and found.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_continues_is_taken_at_its_newest_checkpoint(tmp_path, monkeypatch, command):
    """The weights that it exported when it first finished are older."""
    monkeypatch.chdir(tmp_path)
    write_recipe("sd", "lora", write_sd(tmp_path / "model"), lora={"rank": 2})
    short = ("--set", "train.num_steps=2", "--out", "run")
    done = command("train", "recipe.yaml", *short)
    assert done.exit_code == 0, done.output
    done = command("train", "recipe.yaml", "--set=train.num_steps=6", "--out", "run", "--resume")
    assert done.exit_code == 130, done.output
    found = command("export", "run", "--format", "diffusers")
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[-1] == "run/export/diffusers-step-3"
    for name, step in (("diffusers-step-2", 2), ("diffusers-step-3", 3)):
        if not Path("run/export", name).exists():
            command("export", "run", "--step", step, "--format", "diffusers")
    old, new = (
        load_file(f"run/export/diffusers-step-{step}/pytorch_lora_weights.safetensors")
        for step in (2, 3)
    )
    exported = load_file("run/lora.safetensors")
    assert all(torch.equal(exported[name], old[name]) for name in old)
    assert any(not torch.equal(new[name], old[name]) for name in old)
    shutil.rmtree("run/checkpoints")
    assert command("export", "run", "--format", "diffusers").stdout == "run/export/diffusers\n"
