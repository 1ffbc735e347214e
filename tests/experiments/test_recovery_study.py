"""The closed form against the written-out step, and diffusers' steps and samplers on our models."""

from typing import Any

import pytest
import torch

from directalign.diffusion.path import determinant, flow_sigmas, target
from directalign.diffusion.recovery import gain, inject, recover
from directalign.diffusion.sampling import sample, sample_scheduled
from experiments import recovery, stability
from experiments.ddpm import SCHEDULES, exactness
from methods.toy import ToyFamily

LEVELS = [(0.3, 0.1), (0.3, 0.0), (0.5, 0.55), (0.9, 0.88), (0.97, 0.96), (0.9, 0.99)]
NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("path", "prediction"), [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
)
def test_the_predicted_ratio_and_the_step_are_those_of_the_closed_form(path, prediction):
    generator = torch.Generator().manual_seed(1)
    x0, noise, error = torch.randn(3, 2, 4, 2, 2, generator=generator, dtype=torch.float64)
    for levels in LEVELS:
        start, end = torch.tensor(levels, dtype=torch.float64)[:, None].expand(2, 2)
        factor = gain(path, prediction, start, end) * determinant(path, prediction, start) / start
        ratio = recovery.predicted_ratio(path, *levels)
        assert ratio == pytest.approx(factor[0].abs().item(), rel=1e-9)
        noised = inject(path, x0, noise, start)
        pred = target(path, prediction, x0, noise, noised.sigma) + error
        closed = recover(path, prediction, noised, pred, end).x0
        by_steps = recovery.stepped(ToyFamily(path, prediction), noised, pred, end)
        assert torch.allclose(by_steps, closed, rtol=0, atol=1e-12)
        assert recovery.rmse(closed, x0) > 0


def test_the_closed_form_is_diffusers_own_step_on_every_table():
    rows = exactness(0)
    wanted = {(name, kind) for name, schedule in SCHEDULES.items() for kind in schedule.predictions}
    assert {(row["arm"], row["prediction"]) for row in rows} == wanted
    for row in rows:
        assert row["largest"] < 1e-8 and row["roundtrip"] < 1e-9 and row["steps"] == 50, row
        assert row["closed_float32"] < row["stepped_float32"], row


class Perfect(ToyFamily):
    """Predicts the velocity that leads to its one clean image."""

    x0 = torch.full((1, 4, 4, 4), 0.7, dtype=torch.float64)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        return (x_t - self.x0) / sigma[:, None, None, None]

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images[:, :1]], dim=1).double()

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0[:, :3]


@pytest.mark.parametrize("name", stability.SAMPLERS)
def test_samplers_reach_the_image_of_a_perfect_model_and_agree_in_the_limit(name):
    perfect, model = Perfect(), ToyFamily()
    cond = model.encode_prompt(["a", "b"])

    def scheduled(model: ToyFamily, steps: int) -> torch.Tensor:
        scheduler = stability.scheduler_of(name, steps)
        return sample_scheduled(model, cond, NOISE, scheduler).double()

    assert (scheduled(perfect, 8) - perfect.x0).abs().max() < 1e-2
    exact = sample(model, cond, NOISE, flow_sigmas(500))
    assert (scheduled(model, 60) - exact).abs().max() < 0.05
    if name == "Euler":
        ours = sample(model, cond, NOISE, flow_sigmas(8))
        assert torch.allclose(scheduled(model, 8), ours, atol=1e-5)
