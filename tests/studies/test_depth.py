"""Gradients by depth against finite differences and each other, statistics by hand, and pieces that are kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from directalign.config.load import load_run
from directalign.diffusion.sampling import sample, start_rollout
from directalign.studies.depth import INJECTION, QUICK, Bench, agreement, depths, flat, interval, measure, spread

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(load_run(RECIPES / "world_direct_align.yaml", ["rollout.num_sampling_steps=2", "data.batch_size=2"]))


def test_the_depths_that_are_tried() -> None:
    assert [depths(length) for length in (1, 2, 8, 25)] == [[1], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8, 16, 25]]


def test_every_way_is_one_update_s_worth_of_calls(bench: Bench) -> None:
    assert list(bench.ways) == [INJECTION, 1, 2]
    counted = {}
    for steps in bench.ways:
        bench.calls.take()
        seconds, gradient = bench.gradient(steps, bench.batch(0))
        counted[steps] = bench.calls.take()
        assert seconds > 0 and float(gradient.norm()) > 0 and len(gradient) == sum(each.numel() for each in bench.weights)
    assert counted == {INJECTION: (6, 2), 1: (4, 2), 2: (4, 4)}


def test_gradients_of_another_way_leave_nothing_behind(bench: Bench) -> None:
    first = bench.gradient(1, bench.batch(0))[1]
    bench.gradient(2, bench.batch(0))
    assert torch.equal(bench.gradient(1, bench.batch(0))[1], first)
    assert not torch.allclose(bench.gradient(1, bench.batch(1))[1], first)


def test_the_gradient_at_the_noise_is_a_finite_difference(bench: Bench) -> None:
    """Along the gradient's own direction the reward changes by its norm."""
    batch = bench.batch(0)
    begun = start_rollout(bench.family, bench.run.rollout, batch)

    def rewards(noise: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x0 = sample(bench.family, begun.cond, noise, begun.sigmas)
            return bench.objective(bench.family.decode(x0), batch).reward.double()

    sigmas, norms = bench.at_states(batch)
    assert torch.equal(sigmas, begun.sigmas) and norms.shape == (3,) and (norms > 0).all()

    noise = begun.noise.requires_grad_()
    reward = bench.objective(bench.family.decode(sample(bench.family, begun.cond, noise, begun.sigmas, 2)), batch).reward.sum()
    (gradient,) = torch.autograd.grad(reward, noise)
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    noise, size = noise.detach(), 0.02
    slope = (rewards(noise + size * direction) - rewards(noise - size * direction)) / (2 * size)
    assert float(slope.mean()) == pytest.approx(float(norms[0]), rel=0.03)


def test_statistics_by_hand() -> None:
    assert spread([1.0, 1.0]) == 0 and spread([1.0, 3.0]) == pytest.approx(math.sqrt(2) / 2)
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    assert agreement(one + other, 2) == pytest.approx(0.6)
    assert agreement(one + one + one, 3) == pytest.approx(1)
    assert agreement(one - one + other - other, 4) == pytest.approx(-1 / 3)


def test_an_interval_comes_back_from_its_row() -> None:
    found = {"value": 2.0, "low": 1.0, "high": 3.0, "n": 4}
    assert interval({**flat("norm", found), "batches": 4}, "norm") == found


def test_the_rows_and_that_they_are_kept(tmp_path: Path) -> None:
    rows = measure("convergence", tmp_path, True, RECIPES)
    assert [row["grad_steps"] for row in rows if row["kind"] == "depth"] == [0, 1, 2]
    states = [row for row in rows if row["kind"] == "state"]
    assert [row["depth"] for row in states] == [2, 1, 0] and states[0]["sigma"] == 1 and states[-1]["sigma"] == 0
    assert states[-1]["growth"] == pytest.approx(1) and rows[0]["ratio"] == pytest.approx(1)
    assert all(row["batches"] == QUICK.batches and row["commit"] == rows[0]["commit"] for row in rows)
    assert measure("convergence", tmp_path, True, RECIPES) == rows
