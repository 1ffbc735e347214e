"""Gradients of the studies against known truth and finite differences, and what they cost."""

import pytest
import torch

from directalign.config import RolloutConfig, SRPOConfig
from directalign.config.load import load_run
from directalign.diffusion.sampling import sample, start_rollout
from directalign.types import Batch, DirectAlignError
from experiments import inversion
from experiments.convergence import INJECTION, Bench
from methods.toy import ToyFamily, ToyReward

PHRASES = {"positive": ["Photo"], "negative": ["Render"], "order": "cycle"}


def settings(**given: object) -> SRPOConfig:
    return SRPOConfig.model_validate({"control_phrases": PHRASES, **given})


def test_derived_weights_are_those_of_the_documented_table():
    """Half cost has half of the summed weights of both branches."""
    official, half = (load_run(recipe).method for recipe in ("world_official", "world_half_cost"))
    grid, points = inversion.grid_of(official), (6, 250, 500, 750, 994)
    found = [inversion.derived(official, grid, point) for point in points]
    wanted = [-0.199, -0.119, -0.009, 0.101, 0.236]
    assert [mu for mu, _ in found] == pytest.approx(wanted, abs=6e-4)
    halves = [inversion.derived(half, grid, point) for point in points]
    assert [mu for mu, _ in halves] == pytest.approx([mu / 2 for mu, _ in found], abs=0.015)
    message = r"method\.noise_levels\.kind uniform: .* set method\.noise_levels\.kind: window"
    with pytest.raises(DirectAlignError, match=message):
        inversion.grid_of(settings(noise_levels={"kind": "uniform"}))


def test_a_planted_mixture_is_found_to_the_last_digits():
    vectors = torch.randn(3, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fit = inversion.project(-0.2 * vectors[0] + 2.1 * vectors[1], vectors[0], vectors[1])
    assert (fit.absolute, fit.relative, fit.explained) == pytest.approx((-0.2, 2.1, 1.0), abs=1e-12)
    basis = torch.linalg.qr(vectors.T).Q.T
    noisy = inversion.project(3 * basis[0] + 4 * basis[1] + 5 * basis[2], basis[0], basis[1])
    wanted = pytest.approx((3, 4, 0.5), abs=1e-12)
    assert (noisy.absolute, noisy.relative, noisy.explained) == wanted


@pytest.mark.parametrize(
    ("ramps", "expected"),
    [
        ({"denoise": (0.25, 0.0)}, (0.25, 1.125)),
        ({"inversion": (0.0, 0.3)}, (-0.3, 1.15)),
        ({"denoise": (0.2, 0.1), "inversion": (0.2, 0.1)}, (0.2, 2.3)),
    ],
)
def test_an_update_has_exactly_the_weights_of_its_ramps(ramps, expected):
    branches, count = "both" if len(ramps) > 1 else next(iter(ramps)), len(ramps)
    given = {}
    for name, (k_pos, k_neg) in ramps.items():
        sides = {"k_pos": k_pos, "k_neg": k_neg}
        given[name] = {side: {"low_noise": k, "high_noise": k} for side, k in sides.items()}
    method = settings(branches=branches, **given)
    rollout = RolloutConfig(num_inference_steps=3, embedded_guidance=1.0)
    batch = Batch(0, ("a red star", "a blue ring"), seed=4)

    def direction(method: SRPOConfig) -> torch.Tensor:
        return inversion.ascent(ToyFamily(), ToyReward(), method, rollout, batch, 400)

    pure = [inversion.with_weights(method, *each) for each in ((1.0, 0.0), (0.0, 1.0))]
    fit = inversion.project(direction(method), *(direction(each) / count for each in pure))
    assert (fit.absolute, fit.relative, fit.explained) == pytest.approx((*expected, 1.0), abs=1e-9)
    derived = inversion.derived(method, inversion.grid_of(method), 400)
    assert derived == pytest.approx(expected, abs=1e-12)


def test_an_update_is_taken_at_the_target_that_is_asked_for():
    rollout = RolloutConfig(num_inference_steps=3, embedded_guidance=1.0)
    batch = Batch(0, ("a red star", "a blue ring"), seed=4)
    low, high = (
        inversion.ascent(ToyFamily(), ToyReward(), settings(), rollout, batch, point)
        for point in (100, 900)
    )
    assert not torch.allclose(low, high, rtol=1e-3)


@pytest.fixture(scope="module")
def bench():
    small = ["rollout.num_inference_steps=2", "data.batch_size=2"]
    return Bench(load_run("world_direct_align", small))


def test_every_method_costs_one_update_and_changes_no_state(bench):
    counted, first = {}, {}
    for steps in bench.methods:
        bench.calls.take()
        seconds, first[steps] = bench.gradient(steps, bench.batch(0))
        counted[steps] = bench.calls.take()
        assert seconds > 0 and float(first[steps].norm()) > 0
    assert counted == {INJECTION: (6, 2), 1: (4, 2), 2: (4, 4)}
    assert torch.equal(bench.gradient(1, bench.batch(0))[1], first[1])
    assert not torch.allclose(bench.gradient(1, bench.batch(1))[1], first[1])


def test_the_gradient_at_the_noise_is_a_finite_difference(bench):
    """Along the gradient's own direction the reward changes by its norm."""
    batch, model = bench.batch(0), bench.model
    begun = start_rollout(model, bench.run.rollout, batch)

    def reward(noise: torch.Tensor, steps: int = 0) -> torch.Tensor:
        x0 = sample(model, begun.cond, noise, begun.sigmas, steps)
        return bench.objective(model.decode(x0), batch).reward

    sigmas, norms = bench.at_states(batch)
    assert torch.equal(sigmas, begun.sigmas) and norms.shape == (3,) and (norms > 0).all()
    noise = begun.noise.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(noise, 2).sum(), noise)
    step = 0.02 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        change = reward(noise.detach() + step).double() - reward(noise.detach() - step).double()
    assert float(change.mean()) / 0.04 == pytest.approx(float(norms[0]), rel=0.03)
