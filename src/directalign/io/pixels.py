"""Images in [0, 1] as 8-bit pixels; values that are not finite are refused, never rounded."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from ..types import NonFiniteError


def to_pixels(image: Float[Tensor, "3 H W"], name: str = "image") -> UInt8[np.ndarray, "H W 3"]:
    """8-bit pixels, rounded as diffusers rounds; `name` identifies the image in the error.

    Raises: NonFiniteError for NaN and infinities, which would become black or white.
    """
    require_finite(image, name)
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 0).cpu().numpy()


def require_finite(image: Tensor, name: str) -> None:
    """Raise NonFiniteError if a value is NaN or infinite."""
    if not image.isfinite().all():
        raise NonFiniteError(
            f"{name} has values that are not finite (NaN or infinite): the weights are damaged, or "
            "model.dtype is too small for the model or its VAE; check the weights, or set "
            "model.dtype: float32"
        )
