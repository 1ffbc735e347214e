"""The comparison of costs runs, and compares what it says: offline updates sample nothing, online
ones do."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


class Sampled(Exception):
    """A rollout was asked for."""


@pytest.fixture(scope="module")
def offline_cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "offline_cost", ROOT / "benchmarks" / "offline_cost.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_pair_gives_finite_numbers(offline_cost: ModuleType) -> None:
    row = offline_cost.measure(num_inference_steps=2, pairs=1)
    assert all(math.isfinite(value) and value > 0 for value in row.values())
    assert (row["num_inference_steps"], row["pairs"]) == (2, 1)
    assert (
        row["ratio"]
        == row["ratio_low"]
        == row["ratio_high"]
        == pytest.approx(row["offline_seconds"] / row["online_seconds"])
    )


def test_offline_makes_no_rollout(
    offline_cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*arguments: object) -> None:
        raise Sampled

    monkeypatch.setattr("directalign.diffusion.sampling.sample", sample)
    updates = offline_cost.Updates(2)
    before = [weight.detach().clone() for weight in updates.weights]
    assert updates.seconds(0, offline=True) > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, updates.weights, strict=True))
    with pytest.raises(Sampled):
        updates.seconds(1, offline=False)
