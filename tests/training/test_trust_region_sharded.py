"""A network split over two processes holds on to the same base as a whole one, and the mean of its sharded checkpoints is the same."""

from __future__ import annotations

import json
from pathlib import Path

import launching
import pytest
from safetensors.torch import load_file

from directalign.export.average import average_run

TRUST, HALF = "--set=method.kl_beta=0.5", "--set=data.batch_size=2"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def away(out: Path) -> list[float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["metrics"]["kl"] for record in records if record["event"] == "step"]


def furthest(ours: Path, theirs: Path) -> float:
    first, second = (load_file(folder / WEIGHTS) for folder in (ours, theirs))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_two_processes_hold_on_to_what_one_does(tmp_path: Path) -> None:
    recipe, log = launching.write_recipe(tmp_path, "full"), tmp_path / "log"
    assert launching.alone(launching.train(recipe, tmp_path / "one", TRUST), log) == 0, (
        log.read_text()
    )
    assert (
        launching.by_torchrun(launching.train(recipe, tmp_path / "two", TRUST, HALF), log) == 0
    ), log.read_text()
    assert away(tmp_path / "two") == pytest.approx(away(tmp_path / "one"), rel=1e-3, abs=1e-9)
    assert away(tmp_path / "one")[0] == 0 < away(tmp_path / "one")[-1]
    assert furthest(tmp_path / "two", tmp_path / "one") < 1e-5

    assert list((tmp_path / "two" / "checkpoints" / "step-000005").glob("shard-00002*"))
    for name in ("one", "two"):
        average_run(tmp_path / name, tmp_path / f"mean-{name}", last=2, base_share=0.25)
    assert furthest(tmp_path / "mean-two", tmp_path / "mean-one") < 1e-5
