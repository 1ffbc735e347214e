"""The whole trainer on tiny random pipelines, from recipe to page, broken off by a bad number and resumed to the same bits."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from directalign import config
from directalign.methods.srpo import SRPO
from directalign.training import run as train
from directalign.types import Batch, DirectAlignError, NonFiniteError


def recipe(folder: Path, family: str, tune: str) -> config.RunConfig:
    (folder / "prompts.txt").write_text("a red star\na blue circle\na green square")
    write = {"flux": tiny.write_flux, "sd": tiny.write_sd}[family]
    guidance = 3.5 if family == "flux" else None
    given = {
        "name": "tiny",
        "model": {
            "architecture": family,
            "path": str(write(folder / "model")),
            "tune": tune,
            "lora": {"rank": 2, "alpha": 2},
            "gradient_checkpointing": True,
        },
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {
            "form": "absolute",
            "noise_levels": {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1},
            "embedded_guidance": guidance,
        },
        "rollout": {"num_inference_steps": 2, "embedded_guidance": guidance},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 2},
        "train": {
            "num_steps": 3,
            "learning_rate": 1e-2,
            "max_grad_norm": 1.0,
            "save_every": 1,
            "ema_decay": 0.5,
        },
        "evaluate": {"num_samples": 2, "batch_size": 2},
    }
    return config.RunConfig.model_validate(given)


def test_a_full_disk_outside_a_checkpoint_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(run: config.RunConfig, ranks: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = recipe(tmp_path, "flux", "lora")
    monkeypatch.setattr(sys.modules["directalign.training.run"], "_load", full)
    with pytest.raises(
        DirectAlignError,
        match=r"no space left on the disk of .*out; free some and continue with --resume",
    ):
        train(run, tmp_path / "out", resume=False)

    def other(run: config.RunConfig, ranks: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys.modules["directalign.training.run"], "_load", other)
    with pytest.raises(OSError, match="Input/output"):
        train(run, tmp_path / "other", resume=False)


def break_at(step: int) -> Callable[[SRPO, Batch], Any]:
    real = SRPO.losses

    def losses(self: SRPO, batch: Batch) -> Any:
        for loss in real(self, batch):
            yield (
                type(loss)(loss.value * float("nan"), loss.branch, loss.metrics, loss.levels)
                if batch.step == step
                else loss
            )

    return losses


@pytest.mark.parametrize(
    ("family", "tune", "file"),
    [
        ("flux", "lora", "lora.safetensors"),
        ("sd", "full", "unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_run_leaves_everything_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, tune: str, file: str
):
    run = recipe(tmp_path, family, tune)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(run, whole, resume=False) == whole
    assert {
        "run.yaml",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        file.split("/")[0],
        "summary.json",
        "report.html",
    } <= {p.name for p in whole.iterdir()}
    summary = json.loads((whole / "summary.json").read_text())
    assert (
        summary["before"]["reward"] != summary["after"]["reward"] and summary["align_seconds"] > 0
    )

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            NonFiniteError,
            match=r"step 3: the loss is nan \(branch denoise, sigma 0\.\d{4}, 0\.\d{4}\)",
        ),
    ):
        patch.setattr(SRPO, "losses", break_at(2))
        train(run, broken, resume=False)
    torch.randn(5)
    train(run, broken, resume=True)
    assert (broken / file).read_bytes() == (whole / file).read_bytes()
