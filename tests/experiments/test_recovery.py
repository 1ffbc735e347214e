"""The closed form against the step written out, on every path, and diffusers' steps and samplers on our networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from directalign.diffusion.path import DDPMTable, determinant, flow_sigmas, target
from directalign.diffusion.recovery import gain, inject, recover
from directalign.diffusion.rng import FRESH_NOISE, draw_noise, generator_for
from directalign.diffusion.sampling import sample
from directalign.types import PathName, PredictionName
from experiments import stability
from experiments.ddpm import SCHEDULES, by_step, ddim, exactness
from experiments.recovery import (
    HIGHEST,
    deviations,
    kept,
    lost_from,
    predicted_ratio,
    rmse,
    stepped,
    target_levels,
)
from experiments.rows import Rows
from methods.toy import ToyFamily

CASES: list[tuple[PathName, PredictionName]] = [
    ("flow", "velocity"),
    ("vp", "epsilon"),
    ("vp", "v"),
]
LEVELS = [(0.3, 0.1), (0.3, 0.0), (0.5, 0.55), (0.9, 0.88), (0.97, 0.96), (0.9, 0.99)]
NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def level(sigma: float, b: int = 2) -> torch.Tensor:
    return torch.full((b,), sigma, dtype=torch.float64)


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_the_predicted_ratio_and_the_step_are_those_of_the_closed_form(
    path: PathName, prediction: PredictionName
) -> None:
    x0, noise, error = torch.randn(
        3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    for sigma_from, sigma_to in LEVELS:
        start, end = level(sigma_from, 1), level(sigma_to, 1)
        expected = (
            gain(path, prediction, start, end) * determinant(path, prediction, start).abs() / start
        )
        assert predicted_ratio(path, sigma_from, sigma_to) == pytest.approx(
            expected.abs().item(), rel=1e-9
        )
        noised = inject(path, x0, noise, level(sigma_from))
        pred = target(path, prediction, x0, noise, noised.sigma) + error
        closed = recover(path, prediction, noised, pred, level(sigma_to)).x0
        by_steps = stepped(ToyFamily(path, prediction), noised, pred, level(sigma_to))
        assert torch.allclose(by_steps, closed, rtol=0, atol=1e-12) and rmse(closed, x0) > 0


def test_target_levels_and_where_less_than_half_is_left() -> None:
    assert target_levels(0.5, (0.02, 0.1)) == [0.48, 0.52, 0.4, 0.6] and target_levels(
        0.1, (0.1, 0.2)
    ) == [0.0, 0.2, 0.3]
    assert max(target_levels(0.97, (0.005, 0.02, 0.05))) == HIGHEST
    assert lost_from([(0.1, 1.0), (0.5, 0.4), (0.7, 0.6), (0.8, 0.3), (0.9, 0.1)]) == 0.8
    assert (
        lost_from([(0.1, 1.0), (0.9, 0.5)]) is None and lost_from([(0.1, 0.2), (0.9, 0.1)]) == 0.1
    )


def test_what_is_left_is_measured_from_chance() -> None:
    named = {"arm": "flux", "title": "FLUX", "seed": 0, "noise": "fresh"}
    clean = {**named, "image": "clean", "reward": 0.9, "chance": 0.7, "content": 0.8}
    guesses = [
        {**named, "image": "x0_hat", "sigma": s, "reward": r, "content": c}
        for s, r, c in ((0.2, 0.9, 0.8), (0.9, 0.75, 0.2))
    ]
    recovered = [
        {
            **named,
            "image": "recovered",
            "sigma": 0.2,
            "jump": j,
            "reward": r,
            "ratio": 0.2,
            "predicted": 0.4,
        }
        for j, r in ((0.02, 0.8), (0.2, 0.0))
    ]
    rows = Rows([clean, *guesses, *recovered])
    assert kept(rows, "flux", "x0_hat", "fresh", "reward") == [
        (0.2, pytest.approx(1.0)),
        (0.9, pytest.approx(0.25)),
    ]
    assert kept(rows, "flux", "recovered", "fresh", "reward") == [(0.2, pytest.approx(0.5))], (
        "at the jump of the tables"
    )
    assert kept(rows, "flux", "recovered", "rollout", "reward") == []
    assert [found for found, _ in deviations(rows)] == [0.5, 0.5]


def test_the_closed_form_is_diffusers_own_step_on_every_table() -> None:
    rows = exactness(0)
    wanted = {(name, kind) for name, schedule in SCHEDULES.items() for kind in schedule.predictions}
    assert {(row["arm"], row["prediction"]) for row in rows} == wanted
    for row in rows:
        assert row["largest"] < 1e-8 and row["roundtrip"] < 1e-9 and row["steps"] == 50, row
        assert row["closed_float32"] < row["stepped_float32"], row
    stepper = ddim(SCHEDULES["cosine"], "v")
    table, timestep = DDPMTable(stepper.alphas_cumprod), stepper.timesteps[10]
    x0, noise = torch.randn(
        2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sigma_from, sigma_to = (
        table.sigma_of(timestep[None]),
        table.sigma_of(stepper.timesteps[11][None]),
    )
    pred = target("vp", "v", x0, noise, sigma_from)
    assert torch.allclose(
        by_step(stepper, timestep, inject("vp", x0, noise, sigma_from), pred, sigma_to),
        x0,
        atol=1e-10,
    )


# --- other samplers -----------------------------------------------------------------------------


class Perfect(ToyFamily):
    """Knows the one clean image, and predicts the velocity that leads to it."""

    x0 = torch.full((1, 4, 4, 4), 0.7, dtype=torch.float64)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        return (x_t - self.x0) / sigma[:, None, None, None]

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images[:, :1]], dim=1).double()

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0[:, :3]


@pytest.mark.parametrize("name", stability.SAMPLERS)
def test_samplers_reach_a_perfect_network_s_image_and_agree_in_the_limit(name: str) -> None:
    sampler, perfect, family = partial(stability.scheduler_of, name), Perfect(), ToyFamily()
    found = stability.scheduled(perfect, perfect.encode_prompt(["a", "b"]), NOISE, sampler(8))
    assert (found - perfect.x0).abs().max() < 1e-2
    cond = family.encode_prompt(["a", "b"])
    exact = sample(family, cond, NOISE, flow_sigmas(500))
    assert (
        stability.scheduled(family, cond, NOISE, sampler(60)).double() - exact
    ).abs().max() < 0.05
    if name == "Euler":
        ours = sample(family, cond, NOISE, flow_sigmas(8))
        assert torch.allclose(
            stability.scheduled(family, cond, NOISE, sampler(8)).double(), ours, atol=1e-5
        )


def test_a_chain_starts_each_round_where_the_last_one_ended() -> None:
    family, images = Perfect(), torch.rand(2, 3, 4, 4)
    rounds = list(stability.chain(family, family.encode_prompt(["a", "b"]), images, 3, 3))
    assert len(rounds) == 3 and all((after - 0.7).abs().max() < 1e-6 for after in rounds)
    slow, strength = ToyFamily(), stability.STRENGTH
    cond = slow.encode_prompt(["a", "b"])
    first, second = stability.chain(slow, cond, images, 3, 2)
    noise = draw_noise((2, 4, 4, 4), generator_for(3, FRESH_NOISE, 1))
    x_t = (1 - strength) * slow.encode_image(first) + strength * noise
    sigmas = torch.linspace(strength, 0, stability.CHAIN_STEPS + 1, dtype=torch.float64)
    assert torch.allclose(
        second, slow.decode(sample(slow, cond, x_t, sigmas)).float().clamp(0, 1), atol=1e-6
    )
