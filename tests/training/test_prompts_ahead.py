"""All prompts of a run are known before it starts, and a run whose text encoders are freed is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from directalign.config import RunConfig
from directalign.evaluation.eval_prompts import measured_prompts
from directalign.models import load_model
from directalign.training import run as train
from directalign.training.data import open_data
from directalign.training.distributed import TorchProcessGroup
from directalign.training.precompute_embeddings import prompts_of_run
from tiny import SIZE, write_flux


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("flux"))


def recipe(folder: Path, prompts: Path, **model: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "ahead",
            "model": {"architecture": "flux", "path": str(folder), "lora": {"rank": 2}, **model},
            "reward": {"name": "pixels", "statistic": "redness"},
            "method": {"name": "srpo", "form": "absolute", "embedded_guidance": 3.5},
            "rollout": {
                "num_inference_steps": 2,
                "height": SIZE,
                "width": SIZE,
                "embedded_guidance": 3.5,
            },
            "data": {"prompts": str(prompts), "batch_size": 2},
            "train": {
                "num_steps": 2,
                "sample_prompts": ["a green square"],
                "gradient_accumulation_steps": 2,
            },
            "evaluate": {"num_samples": 2, "num_samples_during": 1, "diversity_prompts": 1},
        }
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Forty of them, more than two updates of four need."""
    file = tmp_path / "prompts.txt"
    file.write_text(
        "".join(
            f"a {colour} {shape} .{'.' * place}\n"
            for place, colour in enumerate(("red", "blue") * 10)
            for shape in ("star", "circle")
        )
    )
    return file


def test_a_run_asks_for_these_prompts_and_no_others(tiny_flux, prompts):
    run = recipe(tiny_flux, prompts)
    feed = open_data(run, load_model(run.model, "cpu"), TorchProcessGroup())
    ahead = prompts_of_run(run, feed)
    dealt = {
        prompt for step in range(2) for batch in feed.batches(step) for prompt in batch.prompts
    }
    assert dealt | {"", "a green square"} <= set(ahead) and len(ahead) == len(set(ahead))
    assert len(ahead) <= len(dealt) + 2 + 2 + 1 < len(measured_prompts(run.data))


def test_two_ranks_are_dealt_what_is_known_ahead(tiny_flux, prompts):
    run = recipe(tiny_flux, prompts)
    family = load_model(run.model, "cpu")
    feeds = [open_data(run, family, TorchProcessGroup(rank, 2)) for rank in range(2)]
    dealt = {
        prompt
        for feed in feeds
        for step in range(2)
        for batch in feed.batches(step)
        for prompt in batch.prompts
    }
    assert dealt <= set(prompts_of_run(run, feeds[1])) and len(dealt) == 16


def test_a_run_with_freed_encoders_ends_with_the_weights_of_one_that_keeps_them(
    tiny_flux, prompts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tmp_path / "cache"))
    weights = {}
    for mode in ("keep", "offload", "free"):
        folder = train(
            recipe(tiny_flux, prompts, text_encoders=mode), tmp_path / mode, resume=False
        )
        weights[mode] = load_file(folder / "lora.safetensors")
        assert json.loads((folder / "summary.json").read_text())["num_steps"] == 2
    assert "the text encoders are freed" in capsys.readouterr().out
    for mode in ("offload", "free"):
        assert all(
            (weights[mode][key] - tensor).abs().max() <= 1e-6
            for key, tensor in weights["keep"].items()
        )
    assert list((tmp_path / "cache" / "embeddings").rglob("*.safetensors"))
