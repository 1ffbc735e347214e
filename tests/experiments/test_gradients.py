"""Gradients of the studies: fitted where the truth is known, against finite differences, and what they cost."""

from __future__ import annotations

import pytest
import torch
from planted import run

from directalign.config import RolloutConfig, SRPOConfig
from directalign.config.load import RECIPES, load_run
from directalign.diffusion import noise_levels
from directalign.diffusion.sampling import sample, start_rollout
from directalign.methods.objective_math import absolute_relative, from_absolute_relative
from directalign.types import Batch, DirectAlignError
from experiments import inversion
from experiments.convergence import INJECTION, Bench, Ratio, agreement, cost, ratio
from experiments.rows import Rows
from methods.toy import ToyFamily, ToyReward

POSITIONS = torch.linspace(0, 1, 7, dtype=torch.float64)


def settings(**given: object) -> SRPOConfig:
    words = {"positive": ["Photo"], "negative": ["Render"], "order": "cycle"}
    return SRPOConfig.model_validate({"control_phrases": words, **given})


def method_of(recipe: str) -> SRPOConfig:
    found = load_run(RECIPES / f"{recipe}.yaml").method
    assert isinstance(found, SRPOConfig)
    return found


def ramp(given: object) -> torch.Tensor:
    return noise_levels.Ramp(given.low_noise, given.high_noise).at(POSITIONS)


# --- weights of an update -----------------------------------------------------------------------


def test_half_cost_has_half_of_both_weights_of_the_two_branches() -> None:
    official, half = method_of("world_official"), method_of("world_half_cost")
    k_d, k_i = ramp(official.denoise.k_pos), ramp(official.inversion.k_neg)
    mu, nu = k_d - k_i, (4 + k_d + k_i) / 2
    zero = torch.zeros_like(k_d)
    branches = [absolute_relative(k_d, zero), absolute_relative(zero, k_i)]
    assert torch.allclose(sum(m for m, _ in branches), mu, atol=1e-15)
    assert torch.allclose(sum(n for _, n in branches), nu, atol=1e-15)
    k_pos, k_neg = from_absolute_relative(mu / 2, nu / 2)
    assert torch.allclose(ramp(half.denoise.k_pos), k_pos, atol=1e-15)
    assert torch.allclose(ramp(half.denoise.k_neg), k_neg, atol=1e-15)


def test_derived_weights_are_those_of_the_documented_table() -> None:
    official, half = method_of("world_official"), method_of("world_half_cost")
    grid, points = inversion.grid_of(official), (6, 250, 500, 750, 994)
    found = [inversion.derived(official, grid, point) for point in points]
    assert [mu for mu, _ in found] == pytest.approx(
        [-0.199, -0.119, -0.009, 0.101, 0.236], abs=6e-4
    )
    halves = [inversion.derived(half, grid, point) for point in points]
    assert [mu for mu, _ in halves] == pytest.approx([mu / 2 for mu, _ in found], abs=0.015)
    with pytest.raises(
        DirectAlignError,
        match=r"method\.noise_levels\.kind uniform: .* set method\.noise_levels\.kind: window",
    ):
        inversion.grid_of(settings(noise_levels={"kind": "uniform"}))


def test_a_planted_mixture_is_found_to_the_last_digits() -> None:
    vectors = torch.randn(3, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fit = inversion.project(-0.2 * vectors[0] + 2.1 * vectors[1], vectors[0], vectors[1])
    assert (fit.absolute, fit.relative, fit.explained) == pytest.approx((-0.2, 2.1, 1.0), abs=1e-12)
    basis = torch.linalg.qr(vectors.T).Q.T
    noisy = inversion.project(3 * basis[0] + 4 * basis[1] + 5 * basis[2], basis[0], basis[1])
    assert (noisy.absolute, noisy.relative, noisy.explained) == pytest.approx(
        (3, 4, 0.5), abs=1e-12
    )


@pytest.mark.parametrize(
    ("branches", "expected"),
    [("denoise", (0.25, 1.125)), ("inversion", (-0.3, 1.15)), ("both", (0.2, 2.3))],
)
def test_an_update_has_exactly_the_weights_of_its_ramps(
    branches: str, expected: tuple[float, float]
) -> None:
    ramps = (
        {"denoise": (0.25, 0.0), "inversion": (0.0, 0.3)}
        if branches != "both"
        else dict.fromkeys(("denoise", "inversion"), (0.2, 0.1))
    )
    sides = {
        name: {
            side: {"low_noise": k, "high_noise": k}
            for side, k in zip(("k_pos", "k_neg"), pair, strict=True)
        }
        for name, pair in ramps.items()
    }
    method, rollout = (
        settings(branches=branches, **sides),
        RolloutConfig(num_inference_steps=3, embedded_guidance=1.0),
    )
    batch, count = Batch(0, ("a red star", "a blue ring"), seed=4), 2 if branches == "both" else 1

    def direction(given: SRPOConfig) -> torch.Tensor:
        return inversion.ascent(ToyFamily(), ToyReward(), given, rollout, batch, 400)

    bases = [
        direction(inversion.with_weights(method, *pure)) / count
        for pure in ((1.0, 0.0), (0.0, 1.0))
    ]
    fit = inversion.project(direction(method), *bases)
    assert (fit.absolute, fit.relative, fit.explained) == pytest.approx((*expected, 1.0), abs=1e-9)
    assert inversion.derived(method, inversion.grid_of(method), 400) == pytest.approx(
        expected, abs=1e-12
    )


# --- one injection against K steps --------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Bench:
    small = ["rollout.num_inference_steps=2", "data.batch_size=2"]
    return Bench(load_run(RECIPES / "world_direct_align.yaml", small))


def test_every_method_costs_one_update_and_leaves_nothing_behind(bench: Bench) -> None:
    counted, first = {}, {}
    for steps in bench.methods:
        bench.calls.take()
        seconds, first[steps] = bench.gradient(steps, bench.batch(0))
        counted[steps] = bench.calls.take()
        assert seconds > 0 and float(first[steps].norm()) > 0
    assert counted == {INJECTION: (6, 2), 1: (4, 2), 2: (4, 4)}
    assert torch.equal(bench.gradient(1, bench.batch(0))[1], first[1])
    assert not torch.allclose(bench.gradient(1, bench.batch(1))[1], first[1])


def test_the_gradient_at_the_noise_is_a_finite_difference(bench: Bench) -> None:
    """Along the gradient's own direction the reward changes by its norm."""
    batch = bench.batch(0)
    begun = start_rollout(bench.model, bench.run.rollout, batch)

    def reward(noise: torch.Tensor, steps: int = 0) -> torch.Tensor:
        x0 = sample(bench.model, begun.cond, noise, begun.sigmas, *([steps] if steps else []))
        return bench.objective(bench.model.decode(x0), batch).reward

    sigmas, norms = bench.at_states(batch)
    assert torch.equal(sigmas, begun.sigmas) and norms.shape == (3,) and (norms > 0).all()
    noise = begun.noise.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(noise, 2).sum(), noise)
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    noise, size = noise.detach(), 0.02
    with torch.no_grad():
        slope = (
            reward(noise + size * direction).double() - reward(noise - size * direction).double()
        ) / (2 * size)
    assert float(slope.mean()) == pytest.approx(float(norms[0]), rel=0.03)


def test_agreement_by_hand() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    assert agreement(one + other, 2) == pytest.approx(0.6) and agreement(
        3 * one, 3
    ) == pytest.approx(1)
    assert agreement(one - one + other - other, 4) == pytest.approx(-1 / 3)


# --- costs of a level ---------------------------------------------------------------------------


def test_costs_and_their_ratios_are_taken_seed_by_seed() -> None:
    rows = Rows(
        [row for seed in (0, 1) for row in run("srpo", seed, [0.1, 0.5, 0.9], 100 * 1.1**seed)]
    )
    rows += [row for seed in (0, 1) for row in run("refl", seed, [0.1, 0.3, 0.5], 400 * 1.1**seed)]
    key = "call_equivalents"
    assert (
        cost(rows, "srpo", 0, key, 0.4) == pytest.approx(75)
        and cost(rows, "refl", 0, key, 0.6) is None
    )
    found = ratio(rows, "refl", "srpo", key, 0.4)
    assert str(found) == "8.0 (8.0–8.0)" and (found.reached, found.seeds, found.beyond) == (
        2,
        2,
        None,
    )
    missed = ratio(rows, "refl", "srpo", key, 0.6)
    assert (
        missed.interval is None
        and missed.beyond == pytest.approx(800 / 125)
        and str(missed) == "> 6.4, not reached"
    )
    assert (
        ratio(rows, "srpo", "refl", key, 0.8) == Ratio(None, None, 0, 0)
        and str(Ratio(None, None, 0, 0)) == "–"
    )
    some = Rows(
        [
            *rows.where(arm="srpo"),
            *run("refl", 0, [0.1, 0.5], 400),
            *run("refl", 1, [0.1, 0.2], 400),
        ]
    )
    assert str(ratio(some, "refl", "srpo", key, 0.4)) == "4.0, 1 of 2 seeds"
