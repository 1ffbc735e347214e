"""SRPO by `directalign train` on a tiny FLUX, with a Qwen VL in bfloat16 as the reward."""

import json
import math

import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from directalign.cli import app
from tiny import SIZE


def test_the_loss_is_finite_and_weights_move(sections, tiny_flux, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "prompts.txt").write_text("a red star on sandy background\na blue circle\n")
    guidance = {"embedded_guidance": 3.5}
    recipe = {
        "name": "test",
        "model": {"architecture": "flux", "path": str(tiny_flux), "lora": {"rank": 2, "alpha": 4}},
        "reward": {
            "name": "vlm",
            "path": sections("qwen2_5_vl").path,
            "dtype": "bfloat16",
            "gradient_checkpointing": True,
        },
        "method": {
            "name": "srpo",
            "form": "relative",
            "control_phrases": {"positive": ["Realistic photo"], "negative": ["CG render"]},
            **guidance,
        },
        "rollout": {"num_inference_steps": 2, "height": SIZE, "width": SIZE, **guidance},
        "data": {"prompts": str(tmp_path / "prompts.txt"), "batch_size": 2},
        "train": {"num_steps": 1, "learning_rate": 0.05},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--out", str(run)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (step,) = [row for row in rows if row["event"] == "step"]
    assert math.isfinite(step["loss"]) and step["grad_norm"] > 0
    weights = load_file(run / "lora.safetensors")
    assert any(torch.count_nonzero(w) for key, w in weights.items() if "lora_B" in key)
