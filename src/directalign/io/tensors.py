"""Checks of tensors: weights that were read, and images that become 8-bit pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from ..types import DirectAlignError, NonFiniteError

COUNTS = ("int64", "int32")


def check_weights(
    tensors: Mapping[str, Tensor], file: Path | str, counts: Sequence[str] = COUNTS
) -> None:
    """Raise DirectAlignError, naming file and tensor, for NaN, infinities, or no real numbers.

    Whole numbers of the types `counts` are accepted: such tensors count something (position_ids).
    """
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            if kind in counts:
                continue
            raise DirectAlignError(
                f"{file}: {name} is of type {kind}, and weights are floating-point numbers: take "
                "the file in float32, bfloat16 or float16"
            )
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # 8-bit floats have no isfinite
        if not tensor.is_meta and not wide.isfinite().all():
            raise DirectAlignError(
                f"{file}: {name} has values that are not finite (NaN or infinite): copy the file "
                "again, or restore it from before it was damaged"
            )


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
