"""SRPO through the command on tiny random models, judged by rewards in their makers' layouts: losses stay finite and the weights move."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from directalign.cli import app
from recorded_rewards import write_aesthetic, write_image_reward
from tiny import tiny_flux

__all__ = ["tiny_flux"]


def trained(
    folder: Path, model: Path, reward: dict[str, Any], method: dict[str, Any]
) -> list[dict[str, Any]]:
    """The log of three updates by `directalign train`, after `directalign check` found nothing."""
    (folder / "prompts.txt").write_text("a red star\na blue circle\n")
    recipe = {
        "name": "test",
        "model": {"architecture": "flux", "path": str(model)},
        "reward": reward,
        "method": {"name": "srpo", "embedded_guidance": 3.5, **method},
        "rollout": {"num_inference_steps": 2, "embedded_guidance": 1.0},
        "data": {"prompts": str(folder / "prompts.txt")},
        "train": {"num_steps": 3, "learning_rate": 1e-3},
        "evaluate": {"num_samples": 4, "num_samples_during": 4},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for command in ("check", "train"):
        result = CliRunner().invoke(
            app, [command, str(folder / "recipe.yaml"), "--out", str(folder / "run")]
        )
        assert result.exit_code == 0, result.output
    return [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(("name", "form"), [("image_reward", "relative"), ("v2_5", "absolute")])
def test_it_trains(name: str, form: str, tmp_path: Path, tiny_flux: Path) -> None:
    torch.manual_seed(0)
    if name == "image_reward":
        weights, reader = write_image_reward(tmp_path)
        reward = {
            "name": "image_reward",
            "path": str(weights),
            "processor": str(reader),
            "gradient_checkpointing": True,
        }
    else:
        head, backbone = write_aesthetic(tmp_path, name)
        reward = {"name": "aesthetic", "path": str(head), "backbone": str(backbone)}
    words = (
        {"control_phrases": {"positive": ["Realistic photo"], "negative": ["CG render"]}}
        if form == "relative"
        else {}
    )
    rows = [
        row for row in trained(tmp_path, tiny_flux, reward, {"form": form} | words) if "loss" in row
    ]
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) for row in rows), rows
    lora = load_file(tmp_path / "run" / "lora.safetensors")
    assert (
        max(float(tensor.abs().max()) for name, tensor in lora.items() if "lora_B" in name) > 1e-5
    )  # starts at zero
