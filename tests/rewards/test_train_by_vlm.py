"""SRPO's relative form by a VLM through the command: a tiny random FLUX, a tiny random Qwen2.5-VL, in bfloat16 as a recipe has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from directalign.cli import app
from tiny import SIZE, tiny_flux
from tiny_vlm import vlm_folder

__all__ = ["tiny_flux", "vlm_folder"]


@pytest.fixture
def recipe(
    tiny_flux: Path, vlm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Written as recipe.yaml into the current folder."""
    monkeypatch.chdir(tmp_path)
    given = {
        "name": "by a vlm",
        "model": {"architecture": "flux", "path": str(tiny_flux), "lora": {"rank": 2, "alpha": 4}},
        "reward": {"name": "vlm", "path": str(vlm_folder), "gradient_checkpointing": True},
        "method": {
            "name": "srpo",
            "form": "relative",
            "control_phrases": {"positive": ["Realistic photo"], "negative": ["CG render"]},
            "embedded_guidance": 3.5,
        },
        "rollout": {
            "num_inference_steps": 2,
            "height": SIZE,
            "width": SIZE,
            "embedded_guidance": 3.5,
        },
        "data": {"prompts": "prompts.txt", "batch_size": 2},
        "train": {"num_steps": 2, "learning_rate": 0.05},
        "evaluate": {"num_samples": 2, "batch_size": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(given))
    Path("prompts.txt").write_text("a red star on sandy background\na blue circle\n")
    return given


def test_it_trains(recipe: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, ["train", "recipe.yaml", "--out", "run"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert len(steps) == 2
    scores = [(step["metrics"]["score_pos"], step["metrics"]["score_neg"]) for step in steps]
    assert all(
        0 < positive < 1 and 0 < negative < 1 and positive != negative
        for positive, negative in scores
    )
    assert all(step["grad_norm"] > 0 for step in steps)
    lora = load_file(next(Path("run").rglob("lora.safetensors")))
    assert any(torch.count_nonzero(tensor) for name, tensor in lora.items() if "lora_B" in name)


def test_a_wrong_answer_is_found_before_anything_is_loaded(recipe: dict[str, Any]) -> None:
    refused = CliRunner().invoke(app, ["check", "recipe.yaml", "--set", "reward.yes=Certainly"])
    assert refused.exit_code != 0
    assert "reward.yes: 'Certainly' is" in refused.output + refused.stderr
