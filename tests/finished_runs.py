"""Folders of finished runs on tiny pipelines: recipe, weights, sample grids, summary."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from directalign.config import RunConfig
from directalign.config.load import dump_run
from directalign.models.lora_files import LowRank
from low_rank_updates import write_lora

PROMPTS = ["a red star on a navy background", "a blue ring"]
SUMMARY = {
    "commit": "0123456789abcdef",
    "versions": {"directalign": "0.1.0", "torch": "2.9.0", "diffusers": "0.38.0", "peft": "0.17.0"},
    "before": {
        "event": "evaluate", "step": 0, "color_drift": 0.0318, "seconds": 1.0,
        "photo_rate": {"value": 0.125, "low": 0.08, "high": 0.18, "n": 256},
    },
    "after": {
        "event": "evaluate", "step": 3, "color_drift": 0.0239, "seconds": 1.0,
        "photo_rate": {"value": 0.875, "low": 0.83, "high": 0.91, "n": 256},
    },
}  # fmt: skip


def finished_recipe(
    architecture: str, base: Path | str, tune: str = "lora", **model: Any
) -> RunConfig:
    """A run of three updates; `model` overrides keys of its section."""
    lora = {"rank": 2, "alpha": 4}
    section = {"architecture": architecture, "path": str(base), "tune": tune, "lora": lora, **model}
    given: dict[str, Any] = {"name": "Red, LoRA 2", "seed": 7, "model": section}
    given |= {"reward": {"name": "pixels", "statistic": "redness"}, "method": {"form": "absolute"}}
    given |= {"rollout": {"num_inference_steps": 2}, "train": {"num_steps": 3}}
    given |= {"data": {"prompts": "/home/someone/private/prompts.txt"}}
    return RunConfig.model_validate(given)


def write_finished(
    folder: Path,
    run: RunConfig,
    updates: Mapping[str, LowRank] | None = None,
    part: str = "transformer",
) -> Path:
    """All files of a finished run that an export reads; the weights only with `updates`."""
    samples = folder / "samples"
    samples.mkdir(parents=True)
    (folder / "run.yaml").write_text(dump_run(run))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.jsonl").write_text("")
    info = {"prompts": PROMPTS, "seeds": [0, 1], "columns": 4}
    (samples / "samples.json").write_text(json.dumps(info))
    for step, color in ((0, "blue"), (3, "red")):
        Image.new("RGB", (64, 32), color).save(samples / f"step-{step:06d}.png")
    if updates is not None:
        write_lora(folder, updates, part)
    return folder


def image(pipe: Any) -> np.ndarray:
    """A 32×32 image (h, w, 3) of a diffusers pipeline, always from the same noise."""
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32}
    if "max_sequence_length" in inspect.signature(pipe.__call__).parameters:
        settings["max_sequence_length"] = 12
    generator = torch.Generator().manual_seed(0)
    return pipe("a red star", output_type="np", generator=generator, **settings).images[0]
