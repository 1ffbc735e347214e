"""An architecture as a user meets it: train, resume, sample, export.

The diffusers pipeline with the exported LoRA makes the sampled image. Tiny random checkpoints in
the real format, a tiny CLIP as the relative reward, and a learning rate large enough to change it.
tests/models/test_chain.py shows the same of every architecture from Python, in less time.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import Result

from tiny import SIZE, WRITERS

Command = Callable[..., Result]
LORA = {"rank": 2, "alpha": 4}


@pytest.mark.parametrize("architecture", ["sdxl", "flux"])
def test_from_a_checkpoint_to_an_image_of_the_diffusers_pipeline(
    architecture, tmp_path, clip_folder, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _write_recipe(architecture, WRITERS[architecture](tmp_path / "model"), clip_folder)
    assert "run" in _lines(command("train", "recipe.yaml", "--out", "run"))
    longer = ("--set", "train.num_steps=3", "--out", "run", "--resume")
    resumed = _lines(command("train", "recipe.yaml", *longer))
    assert any(line.startswith("continuing from run/checkpoints/step-000002") for line in resumed)
    assert _updates() == [1, 2, 3]
    prompt = ("--prompt", "a red star on sandy background", "--seed", "7")
    assert _lines(command("sample", "run", *prompt)) == ["images/0000-seed7.png"]
    assert _lines(command("export", "run", "--format", "diffusers")) == ["run/export/diffusers"]
    sampled = _pixels(Image.open("images/0000-seed7.png"))
    call = json.loads(Path("images/images.jsonl").read_text())["diffusers"]
    assert np.abs(sampled - _by_diffusers(call, exported=True)).max() <= 1
    assert np.abs(sampled - _by_diffusers(call, exported=False)).max() > 4


def _write_recipe(architecture: str, model: Path, clip: Path) -> None:
    """recipe.yaml: two updates on two prompts, SRPO's relative form, its guidance."""
    embedded = {"embedded_guidance": 3.5} if architecture == "flux" else {}
    guidance = embedded or {"cfg_scale": 3.0}
    recipe = {
        "name": f"tiny {architecture}",
        "model": {"architecture": architecture, "path": str(model), "lora": LORA},
        "reward": {"name": "clip", "path": str(clip)},
        "method": {
            "name": "srpo",
            "form": "relative",
            "control_phrases": {"positive": ["Realistic photo"], "negative": ["CG render"]},
            **embedded,
        },
        "rollout": {"num_inference_steps": 2, "height": SIZE, "width": SIZE, **guidance},
        "data": {"prompts": "prompts.txt", "batch_size": 2},
        "train": {"num_steps": 2, "learning_rate": 0.1, "save_every": 1},
        "evaluate": {"num_samples": 2, "batch_size": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("prompts.txt").write_text("a red star on sandy background\na blue circle\n")


def _lines(result: Result) -> list[str]:
    """Output of a successful command."""
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def _updates() -> list[int]:
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["event"] == "step"]


def _by_diffusers(call: dict[str, Any], exported: bool) -> np.ndarray:
    """The recorded call with the exported LoRA instead of the run's, or with none."""
    lines = [line for line in call["code"].splitlines() if "load_lora_weights" not in line]
    if exported:
        place = next(place for place, line in enumerate(lines) if line.startswith("pipe = ")) + 1
        lines.insert(
            place,
            "pipe.load_lora_weights('run/export/diffusers', "
            "weight_name='pytorch_lora_weights.safetensors')",
        )
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return _pixels(names["image"])


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)
