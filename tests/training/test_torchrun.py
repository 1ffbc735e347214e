"""Two processes do what one does, in both ways of sharing the network, and each number of processes goes on with what the other left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from directalign.training import run_log

HALF = "--set=data.batch_size=2"
"""Of the recipe's four prompts per update."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str], Path]:
    """The undisturbed run on one process with `model.tune` as told; beside it lies its recipe."""

    @cache
    def run(tune: str) -> Path:
        recipe, out = launching.write_recipe(folder, tune), folder / f"{tune}-whole"
        assert launching.alone(launching.train(recipe, out), folder / "whole.log") == 0, (
            folder / "whole.log"
        ).read_text()
        return out

    return run


def recipe_of(whole: Path) -> Path:
    return whole.with_name(whole.name.removesuffix("-whole") + ".yaml")


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(next(out.glob("lora.safetensors"), out / WEIGHTS))


def furthest(out: Path, whole: Path) -> float:
    """The largest difference of a saved weight."""
    ours, theirs = weights(out), weights(whole)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def records(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "phases")}
        for record in found
    ]


def alike(ours: Any, theirs: Any) -> bool:
    """Equal but for rounding, numbers within 1e-4 of one another."""
    if isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(alike(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return ours == (
        pytest.approx(theirs, rel=1e-4, abs=1e-4) if isinstance(theirs, float) else theirs
    )


def killed_at(step: int, rank: int) -> launching.Sabotage:
    def sabotage(own: int, current: int) -> None:
        if (own, current) == (rank, step) and os.environ.get(
            "TORCHELASTIC_RESTART_COUNT", "0"
        ) == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    return sabotage


def fails_at(step: int, rank: int) -> launching.Sabotage:
    def sabotage(own: int, current: int) -> None:
        if (own, current) == (rank, step):
            raise RuntimeError("boom")

    return sabotage


@pytest.mark.parametrize(
    ("tune", "launch"), [("lora", launching.by_torchrun), ("full", launching.by_command)]
)
def test_two_processes_end_where_one_does(
    whole: Callable[[str], Path], tmp_path: Path, tune: str, launch: Callable[..., int]
):
    out, log, wanted = tmp_path / "out", tmp_path / "log", whole(tune)
    assert launch(launching.train(recipe_of(wanted), out, HALF), log) == 0, log.read_text()
    moved = max(
        float((weights(wanted)[name] - start).abs().max())
        for name, start in beginnings(wanted).items()
    )
    assert furthest(out, wanted) < 1e-5 < 1e-4 < moved
    ours, theirs = records(out), records(wanted)
    assert len(ours) == len(theirs) and all(map(alike, ours, theirs))
    assert json.loads((out / "summary.json").read_text())["ranks"] == 2
    for ours, theirs in zip(
        sorted((out / "samples").glob("*.png")),
        sorted((wanted / "samples").glob("*.png")),
        strict=True,
    ):
        assert (run_log.load_grid(ours) - run_log.load_grid(theirs)).abs().max() < 1.5 / 255
    is_split = any(
        file.name.startswith("shard-00002")
        for file in (out / "checkpoints" / "step-000004").iterdir()
    )
    assert is_split == (tune == "full")


def beginnings(whole: Path) -> dict[str, Tensor]:
    """The weights before training: the base model's, or second factors of zero."""
    if whole.name == "full-whole":
        return load_file(whole.parent / "model" / WEIGHTS)
    return {
        name: torch.zeros_like(tensor)
        for name, tensor in weights(whole).items()
        if ".lora_B." in name or ".lora.up." in name
    }


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_one_process_goes_on_with_what_two_left(
    whole: Callable[[str], Path], tmp_path: Path, tune: str
):
    out, log, wanted = tmp_path / "out", tmp_path / "log", whole(tune)
    command = launching.train(recipe_of(wanted), out, HALF)
    assert launching.by_torchrun(command, log, killed_at(3, rank=1)) != 0
    assert [record["step"] for record in records(out) if record["event"] == "step"] == [1, 2, 3]
    assert launching.alone(launching.train(recipe_of(wanted), out, "--resume"), log) == 0, (
        log.read_text()
    )
    assert furthest(out, wanted) < 1e-5
    assert all(map(alike, records(out), records(wanted)))


def test_two_processes_split_what_one_left_whole(whole: Callable[[str], Path], tmp_path: Path):
    out, log, wanted = tmp_path / "out", tmp_path / "log", whole("full")
    assert (
        launching.alone(launching.train(recipe_of(wanted), out, "--set=train.num_steps=2"), log)
        == 0
    ), log.read_text()
    assert (
        launching.by_torchrun(launching.train(recipe_of(wanted), out, HALF, "--resume"), log) == 0
    ), log.read_text()
    assert furthest(out, wanted) < 1e-5


def test_torchrun_starts_again_where_a_rank_was_killed(
    whole: Callable[[str], Path], tmp_path: Path
):
    out, log, wanted = tmp_path / "out", tmp_path / "log", whole("lora")
    assert (
        launching.by_torchrun(
            launching.train(recipe_of(wanted), out, HALF), log, killed_at(3, rank=0), max_restarts=1
        )
        == 0
    ), log.read_text()
    assert furthest(out, wanted) < 1e-5


def test_a_rank_that_fails_ends_the_whole_job(folder: Path, tmp_path: Path):
    recipe, log = launching.write_recipe(folder, "full"), tmp_path / "log"
    begun = time.monotonic()
    assert (
        launching.by_torchrun(
            launching.train(recipe, tmp_path / "out", HALF), log, fails_at(1, rank=1)
        )
        != 0
    ), log.read_text()
    assert "boom" in log.read_text() and time.monotonic() - begun < 60
