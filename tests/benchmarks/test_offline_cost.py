"""The comparison of costs: offline updates make no rollout, online updates do."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from directalign.training.step import NFECounter

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import offline_cost


def test_one_pair_gives_finite_numbers():
    row = offline_cost.measure(num_inference_steps=2, pairs=1)
    assert all(math.isfinite(value) and value > 0 for value in row.values())
    assert (row["num_inference_steps"], row["pairs"]) == (2, 1)
    ratio = row["offline_seconds"] / row["online_seconds"]
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == pytest.approx(ratio)


def test_offline_makes_no_rollout():
    updates = offline_cost.Updates(2)
    before, calls = [weight.detach().clone() for weight in updates.weights], {}
    counter, b = NFECounter(updates.model.denoiser), len(updates.prompts)
    for offline in (True, False):
        assert updates.seconds(0, offline) > 0
        calls[offline] = counter.take()
    assert calls == {True: (b, b), False: (3 * b, b)}
    assert any(not torch.equal(old, new) for old, new in zip(before, updates.weights, strict=True))
