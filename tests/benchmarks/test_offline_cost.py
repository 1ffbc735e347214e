"""The comparison of costs: offline updates make no rollout, online updates do."""

import sys
from pathlib import Path

import torch

from directalign.training.step import NFECounter

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import offline_cost


def test_offline_makes_no_rollout():
    updates = offline_cost.Updates(2)
    before, calls = [weight.detach().clone() for weight in updates.weights], {}
    counter, b = NFECounter(updates.model.denoiser), len(updates.prompts)
    for offline in (True, False):
        assert updates.seconds(0, offline) > 0
        calls[offline] = counter.take()
    assert calls == {True: (b, b), False: (3 * b, b)}
    assert any(not torch.equal(old, new) for old, new in zip(before, updates.weights, strict=True))
