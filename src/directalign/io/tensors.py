"""One check of tensors that were read as weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..types import DirectAlignError


def check_weights(tensors: Mapping[str, Tensor], file: Path | str) -> None:
    """Raise DirectAlignError, naming file and tensor, for NaN, infinities, or no real numbers.

    Whole numbers are accepted where they count something (64 bits, such as position_ids).
    """
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            if kind in ("int64", "int32"):
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
