"""The closed form against the step and the subtraction that it replaces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from directalign.diffusion.path import alpha, target
from directalign.diffusion.recovery import gain, inject, recover

NATIVE = [
    ("flow", "velocity"),
    ("vp", "epsilon"),
    ("vp", "v"),
    ("flow", "epsilon"),
    ("vp", "velocity"),
    ("flow", "v"),
]
SIGMA_HIGH = torch.tensor([0.3, 0.8, 0.97], dtype=torch.float64)
SIGMA_LOW = torch.tensor([0.1, 0.78, 0.90], dtype=torch.float64)
levels = st.floats(0.01, 0.98)


def euler_then_subtract(x0, noise, pred, sigma_from, sigma_to):
    """Rectified flow: one Euler step along the velocity, then the known noise taken out."""
    start, end = (sigma.view(-1, 1, 1, 1) for sigma in (sigma_from, sigma_to))
    x_from = (1 - start) * x0 + start * noise
    x_to = x_from + (end - start) * pred
    return (x_to - end * noise) / (1 - end)


def ddim_then_subtract(x0, noise, pred, sigma_from, sigma_to, prediction):
    """Variance preserving: one DDIM step with eta 0, then the known noise taken out."""
    start, end = (sigma.view(-1, 1, 1, 1) for sigma in (sigma_from, sigma_to))
    signal_start, signal_end = (1 - start**2).sqrt(), (1 - end**2).sqrt()
    x_from = signal_start * x0 + start * noise
    if prediction == "epsilon":
        x0_hat, noise_hat = (x_from - start * pred) / signal_start, pred
    elif prediction == "v":
        x0_hat = signal_start * x_from - start * pred
        noise_hat = start * x_from + signal_start * pred
    else:
        x0_hat, noise_hat = pred, (x_from - signal_start * pred) / start
    return (signal_end * x0_hat + end * noise_hat - end * noise) / signal_end


def recovered(path, prediction, x0, noise, pred, sigma_from, sigma_to):
    return recover(path, prediction, inject(path, x0, noise, sigma_from), pred, sigma_to)


@given(levels, levels, st.sampled_from(NATIVE))
def test_a_perfect_network_returns_x0_from_every_level(sigma_from, sigma_to, native):
    x0, noise = torch.randn(
        2, 1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    start, end = (torch.tensor([sigma], dtype=torch.float64) for sigma in (sigma_from, sigma_to))
    pred = target(*native, x0, noise, start)
    assert torch.equal(recovered(*native, x0, noise, pred, start, end).x0, x0)


@pytest.mark.parametrize(
    ("sigma_from", "sigma_to"),
    [(SIGMA_HIGH, SIGMA_LOW), (SIGMA_LOW, SIGMA_HIGH)],
    ids=["denoise", "inversion"],
)
@pytest.mark.parametrize("native", [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")])
def test_closed_form_is_step_then_subtract_in_value_and_gradient(
    native, sigma_from, sigma_to, latents
):
    x0, noise, start = latents
    cotangent = torch.randn_like(x0)
    images, gradients = [], []
    for form in ("closed", "stepped"):
        pred = start.clone().requires_grad_()
        if form == "closed":
            image = recovered(*native, x0, noise, pred, sigma_from, sigma_to).x0
        elif native[0] == "flow":
            image = euler_then_subtract(x0, noise, pred, sigma_from, sigma_to)
        else:
            image = ddim_then_subtract(x0, noise, pred, sigma_from, sigma_to, native[1])
        image.backward(cotangent)
        images.append(image.detach())
        gradients.append(pred.grad)
    assert_close(*images, rtol=1e-12, atol=1e-12)
    assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_gains_written_out():
    start, end = SIGMA_HIGH, SIGMA_LOW
    signal_start, signal_end = alpha("vp", start), alpha("vp", end)
    assert_close(gain("flow", "velocity", start, end), (start - end) / (1 - end))
    assert_close(
        gain("vp", "v", start, end), (start * signal_end - end * signal_start) / signal_end
    )
    assert_close(gain("vp", "epsilon", start, end), start / signal_start - end / signal_end)


@pytest.mark.parametrize("native", [("flow", "velocity"), ("vp", "v"), ("vp", "epsilon")])
def test_gain_is_finite_next_to_pure_noise(native):
    near_one = torch.tensor([1 - 1e-9], dtype=torch.float64)
    assert gain(*native, near_one, near_one - 1e-3).isfinite().all()
    assert gain(*native, near_one - 1e-3, near_one).isfinite().all()
    if native != ("vp", "epsilon"):
        assert gain(*native, torch.ones(1, dtype=torch.float64), near_one).isfinite().all()


def test_residual_form_survives_bfloat16_where_subtraction_does_not(latents):
    x0, noise, _ = latents
    level, landing = (torch.full((3,), sigma, dtype=torch.float64) for sigma in (0.96, 0.95))
    pred = target("flow", "velocity", x0, noise, level) + 0.05
    exact = euler_then_subtract(x0, noise, pred, level, landing)
    low = [tensor.bfloat16() for tensor in (x0, noise, pred)]
    closed = recovered("flow", "velocity", *low, level, landing).x0
    stepped = euler_then_subtract(*low, level.bfloat16(), landing.bfloat16())
    assert (closed - exact).norm() < 0.1 * (stepped - exact).norm()
