"""Small runs on tiny pipelines, and their folders."""

from pathlib import Path
from typing import Any

import torch

from directalign.config import RunConfig
from directalign.config.load import dump_run
from directalign.interfaces import Model
from directalign.models import load_model, trainable


def recipe(model: str, path: Path, prompts: Path | str, **rollout: Any) -> RunConfig:
    """A small run on a tiny pipeline, with a reward of the pixels only."""
    guidance = {"embedded_guidance": 2.0} if model == "flux" else {}
    lora = {"rank": 2, "alpha": 2}
    sections = {
        "name": "tiny",
        "model": {"architecture": model, "path": str(path), "tune": "lora", "lora": lora},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute"},
        "rollout": {"num_inference_steps": 2, **guidance, **rollout},
        "data": {"prompts": str(prompts)},
        "train": {"num_steps": 1},
        "evaluate": {"num_samples": 5, "num_samples_during": 3, "batch_size": 2},
    }
    return RunConfig.model_validate(sections)


def with_settings(run: RunConfig, section: str, **settings: Any) -> RunConfig:
    """The run with other settings in one section."""
    changed = getattr(run, section).model_copy(update=settings)
    return run.model_copy(update={section: changed})


def trained(run: RunConfig) -> Model:
    """The run's model after a stand-in for training: every trainable weight has moved."""
    model = load_model(run.model, "cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write_run_folder(folder: Path, run: RunConfig) -> Path:
    """run.yaml and the trained weights."""
    folder.mkdir()
    (folder / "run.yaml").write_text(dump_run(run))
    trained(run).save(folder)
    return folder
