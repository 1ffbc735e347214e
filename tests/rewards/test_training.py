"""SRPO by `directalign train` on a tiny FLUX with published reward layouts."""

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
RECIPE: dict[str, Any] = {
    "name": "test",
    "rollout": {"num_inference_steps": 2, "height": SIZE, "width": SIZE, "embedded_guidance": 3.5},
    "train": {"num_steps": 1, "learning_rate": 0.05},
    "evaluate": {"num_samples": 1, "batch_size": 1},
}
SRPO = {"name": "srpo", "embedded_guidance": 3.5}
PHRASES = {"positive": ["Realistic photo"], "negative": ["CG render"]}


@pytest.mark.parametrize(
    ("name", "changes", "method"),
    [
        ("v2_5", {}, {"form": "absolute"}),
        ("qwen2_5_vl", {"dtype": "bfloat16"}, {"form": "relative", "control_phrases": PHRASES}),
    ],
)
def test_losses_are_finite_and_weights_move(
    name: str,
    changes: dict[str, Any],
    method: dict[str, Any],
    sections: Callable[[str], Any],
    tiny_flux: Path,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    (tmp_path / "prompts.txt").write_text("a red star on sandy background\na blue circle\n")
    settings = sections(name)
    reward = settings.model_dump(exclude_defaults=True) | {"name": settings.name, **changes}
    lora = {"rank": 2, "alpha": 4}
    recipe = RECIPE | {
        "model": {"architecture": "flux", "path": str(tiny_flux), "lora": lora},
        "reward": reward | {"gradient_checkpointing": True},
        "method": SRPO | method,
        "data": {"prompts": str(tmp_path / "prompts.txt"), "batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    for command in ("check", "train"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml"), "--out", str(run)])
        assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (step,) = [row for row in rows if row["event"] == "step"]
    assert math.isfinite(step["loss"]) and step["grad_norm"] > 0
    weights = load_file(run / "lora.safetensors")
    assert any(torch.count_nonzero(w) for key, w in weights.items() if "lora_B" in key)
