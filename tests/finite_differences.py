"""Whether a gradient is the slope: central differences in float64 along random directions."""

from collections.abc import Callable

import torch
from torch import Tensor


def differs_from_slope(
    score: Callable[[Tensor], Tensor], images: Tensor, directions: int = 4, step: float = 1e-5
) -> float:
    """Largest relative difference between the gradient and the measured slope of `score` (to a
    scalar) at float64 `images`."""
    assert images.dtype == torch.float64
    at = images.clone().requires_grad_()
    score(at).backward()
    assert at.grad is not None
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(directions):
        along = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            slope = float(score(images + step * along) - score(images - step * along)) / (2 * step)
        worst = max(worst, abs(float((at.grad * along).sum()) - slope) / max(abs(slope), 1e-8))
    return worst
