from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from directalign.diffusion.sampling import chain_coefficients, linear_step, sampling_step
from directalign.types import Conditioning
from methods.toy import ToyFamily

NATIVE = [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v"), ("flow", "epsilon")]
HIGH = torch.tensor([0.97, 0.8, 0.3], dtype=torch.float64)
LOW = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
SIGMAS = torch.tensor([0.99, 0.7, 0.4, 0.15, 0.0], dtype=torch.float64)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize(
    ("start", "end"), [(HIGH, LOW), (LOW + 0.01, HIGH)], ids=["denoise", "inversion"]
)
@pytest.mark.parametrize("native", NATIVE)
def test_the_linear_form_is_the_samplers_step(native, start, end, latents):
    family, x_t = ToyFamily(*native), latents[0]
    pred = family.predict(x_t, start, Conditioning(("", "", ""), {}))
    assert_close(
        linear_step(*native, x_t, pred, start, end),
        sampling_step(family, Conditioning(("", "", ""), {}), x_t, start, end),
        **EXACT,
    )


@pytest.mark.parametrize("native", NATIVE)
def test_chain_coefficients_are_the_gradients_of_the_predictions(native):
    x_t = torch.randn(1, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    preds = [torch.randn_like(x_t).requires_grad_() for _ in SIGMAS[1:]]
    for pred, (sigma_from, sigma_to) in zip(preds, pairwise(SIGMAS), strict=True):
        x_t = linear_step(*native, x_t, pred, sigma_from.expand(1), sigma_to.expand(1))
    found = torch.stack(
        [gradient[0, 0, 0, 0] for gradient in torch.autograd.grad(x_t.sum(), preds)]
    )
    assert_close(chain_coefficients(*native, SIGMAS), found, **EXACT)
