"""The trust region in whole runs on tiny pipelines: adapters and all weights, one pass and two, resumed runs, a base in 8 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from directalign import config
from directalign.training import Interrupted, loop
from directalign.training import run as train

WEIGHTS = {"lora": "lora.safetensors", "full": "unet/diffusion_pytorch_model.safetensors"}
SAMPLES, SAMPLING_STEPS = 2, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sd(tmp_path_factory.mktemp("tiny") / "model")


def recipe(
    folder: Path,
    model: Path,
    weight: float = 5.0,
    family: str = "sd",
    cfg_scale: float = 1.0,
    **of_model: Any,
) -> config.RunConfig:
    (folder / "prompts.txt").write_text("a red star\na blue circle\na green square")
    moves = {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1}
    guidance = {"embedded_guidance": 1.0} if family == "flux" else {}
    given = {
        "name": "trust",
        "model": {
            "architecture": family,
            "path": str(model),
            "lora": {"rank": 2, "alpha": 2},
            **of_model,
        },
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {
            "form": "absolute",
            "noise_levels": moves,
            "kl_beta": weight,
            "cfg_scale": cfg_scale,
            **guidance,
        },
        "rollout": {"num_inference_steps": SAMPLING_STEPS, **guidance},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": SAMPLES},
        "train": {
            "num_steps": 3,
            "learning_rate": 1e-2,
            "max_grad_norm": 1.0,
            "save_every": 1,
            "keep_checkpoints": 9,
        },
        "evaluate": {"num_samples": 1, "batch_size": 2},
    }
    return config.RunConfig.model_validate(given)


def steps_of(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "phases")}
        for record in records
        if record["event"] == "step"
    ]


def stopped_before(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.train_step

    def train_step(context: loop.TrainContext, step: int, batches: Any) -> dict[str, Any]:
        if step == last:
            raise Interrupted("stopped here")
        return real(context, step, batches)

    monkeypatch.setattr(loop, "train_step", train_step)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_resumed_run_holds_on_to_the_same_base(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    """With all weights trained, the model in the checkpoint is the base no longer."""
    run = recipe(tmp_path, model, tune=tune)
    train(run, tmp_path / "whole", resume=False)
    away = [record["metrics"]["kl"] for record in steps_of(tmp_path / "whole")]
    assert away[0] == 0 and all(value > 1e-6 for value in away[1:])
    assert all(
        "kl" in row
        for record in steps_of(tmp_path / "whole")
        for rows in record["levels"].values()
        for row in rows
    )

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopped_before(2, patch)
        train(run, tmp_path / "halved", resume=False)
    train(run, tmp_path / "halved", resume=True)
    assert steps_of(tmp_path / "halved") == steps_of(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / out / WEIGHTS[tune]) for out in ("halved", "whole"))
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_costs_one_call_without_gradient_and_keeps_the_model_close(
    tmp_path: Path, model: Path, tune: str
) -> None:
    for weight, out in ((1e-6, "loose"), (100.0, "held")):
        train(recipe(tmp_path, model, weight, tune=tune), tmp_path / out, resume=False)
    loose, held = (steps_of(tmp_path / out) for out in ("loose", "held"))
    assert held[-1]["metrics"]["kl"] < loose[-1]["metrics"]["kl"]
    branches = 2
    for record in held:
        assert record["nfe"] == {
            "forward": SAMPLES * (SAMPLING_STEPS + 2 * branches),
            "backward": SAMPLES * branches,
        }


def test_guidance_takes_two_passes_of_the_base_too(tmp_path: Path, model: Path) -> None:
    train(recipe(tmp_path, model, cfg_scale=3.0), tmp_path / "out", resume=False)
    steps, branches, passes = steps_of(tmp_path / "out"), 2, 2
    assert steps[0]["nfe"] == {
        "forward": SAMPLES * (SAMPLING_STEPS + 2 * branches * passes),
        "backward": SAMPLES * branches * passes,
    }
    assert steps[0]["metrics"]["kl"] == 0 < steps[-1]["metrics"]["kl"]


def test_the_base_of_adapters_may_be_held_in_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "directalign.models.quantization.SMALLEST", 64
    )  # the tiny model's layers are smaller than any that is worth it
    folder = tiny.write_flux(tmp_path / "flux")
    train(
        recipe(
            tmp_path,
            folder,
            family="flux",
            dtype="bfloat16",
            quantization="8bit",
            gradient_checkpointing=True,
        ),
        tmp_path / "out",
        resume=False,
    )
    away = [record["metrics"]["kl"] for record in steps_of(tmp_path / "out")]
    assert away[0] == 0 < away[-1]
