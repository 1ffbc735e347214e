"""SRPO by `directalign train` on a tiny FLUX with published reward layouts: finite losses, moving
weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from directalign.cli import app
from tiny import SIZE, tiny_flux

__all__ = ["tiny_flux"]
PHRASES = {"positive": ["Realistic photo"], "negative": ["CG render"]}


@pytest.mark.parametrize(
    ("name", "form"),
    [("image_reward", "relative"), ("v2_5", "absolute"), ("qwen2_5_vl", "relative")],
)
def test_it_trains(
    name: str, form: str, sections: Callable[[str], Any], tiny_flux: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    (tmp_path / "prompts.txt").write_text("a red star on sandy background\na blue circle\n")
    reward = sections(name).model_dump(exclude_defaults=True) | {"name": sections(name).name}
    if name == "qwen2_5_vl":
        reward["dtype"] = "bfloat16"
    method: dict[str, Any] = {"name": "srpo", "form": form, "embedded_guidance": 3.5}
    if form == "relative":
        method["control_phrases"] = PHRASES
    recipe = {
        "name": "test",
        "model": {
            "architecture": "flux",
            "path": str(tiny_flux),
            "lora": {"rank": 2, "alpha": 4},
        },
        "reward": {**reward, "gradient_checkpointing": True},
        "method": method,
        "rollout": {
            "num_inference_steps": 2,
            "height": SIZE,
            "width": SIZE,
            "embedded_guidance": 3.5,
        },
        "data": {"prompts": str(tmp_path / "prompts.txt"), "batch_size": 2},
        "train": {"num_steps": 2, "learning_rate": 0.05},
        "evaluate": {"num_samples": 2, "batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    for command in ("check", "train"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml"), "--out", str(run)])
        assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    assert len(steps) == 2
    assert all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps)
    lora = load_file(run / "lora.safetensors")
    assert any(torch.count_nonzero(w) for key, w in lora.items() if "lora_B" in key)
