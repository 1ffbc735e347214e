"""Files of weights, read and checked; images: resized, and turned into 8-bit pixels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import DirectAlignError, NonFiniteError, first_line

Shapes = Mapping[str, Sequence[int]]
KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Of weights in safetensors."""
COUNTS = "I64", "I32", "int64", "int32"
COUNTERS = ("_ids", "_index", "num_batches_tracked")
"""Whole numbers are those of buffers with these endings: positions, indices."""
NO_WEIGHTS = (
    "{file}: {name} is of type {kind}, and weights are floating-point numbers: take the file in "
    "float32, bfloat16 or float16"
)


@contextmanager
def opened(file: Path, remedy: str = "copy it again") -> Iterator[Any]:
    """A safetensors file, opened. Raises DirectAlignError: missing, truncated, another format."""
    if not file.is_file():
        raise DirectAlignError(f"{file}: no such file; {remedy}")
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except (OSError, SafetensorError) as error:
        raise DirectAlignError(
            f"{file}: not a complete safetensors file, truncated or of another format "
            f"({first_line(error)}); {remedy}"
        ) from error


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a safetensors file, from its header; raises as `opened`."""
    with opened(file) as content:
        return {name: tuple(content.get_slice(name).get_shape()) for name in list(content.keys())}


def check_safetensors(file: Path) -> None:
    """Raise as `opened`, and for tensors whose type in the header is not that of weights."""
    with opened(file) as content:
        for name in list(content.keys()):
            kind = content.get_slice(name).get_dtype()
            if kind not in KINDS and not (kind in COUNTS and name.endswith(COUNTERS)):
                raise DirectAlignError(NO_WEIGHTS.format(file=file, name=name, kind=kind))


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; raises as `check_safetensors` and `check_weights`."""
    check_safetensors(file)
    tensors = load_file(file)
    check_weights(tensors, file)
    return tensors


def check_weights(
    tensors: Mapping[str, Tensor], file: Path | str, counters: tuple[str, ...] = COUNTERS
) -> None:
    """Raise DirectAlignError, naming file and tensor, for NaN, infinities, or no real numbers.

    Whole numbers are accepted in tensors whose names end with one of `counters`.
    """
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            if kind in COUNTS and name.endswith(counters):
                continue
            raise DirectAlignError(NO_WEIGHTS.format(file=file, name=name, kind=kind))
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # 8-bit floats have no isfinite
        if not tensor.is_meta and not wide.isfinite().all():
            raise DirectAlignError(
                f"{file}: {name} has values that are not finite (NaN or infinite): copy the file "
                "again, or restore it from before it was damaged"
            )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_names(
    wanted: Shapes, found: Shapes, where: str, remedy: str, optional: tuple[str, ...] = ()
) -> None:
    """Check that a file's tensors (`found`) are those that a model needs (`wanted`).

    Names that start with one of `optional` may be missing or unknown.

    Raises DirectAlignError naming the first tensor that is missing, unknown or of another shape.
    """
    both = wanted.keys() & found.keys()
    complaints = {
        "lacks": wanted.keys() - both,
        "has the unknown": found.keys() - both,
        "has in another shape": {n for n in both if tuple(wanted[n]) != tuple(found[n])},
    }
    for complaint, each in complaints.items():
        names = sorted(name for name in each if name in both or not name.startswith(optional))
        if names:
            first = names[0]
            if first in both:
                first += f", which is {tuple(found[first])} and not {tuple(wanted[first])},"
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DirectAlignError(f"{where}: {complaint} {first}{more}; {remedy}")


def resize(
    images: Float[Tensor, "b c H W"], size: tuple[int, int], mode: str
) -> Float[Tensor, "b c rows columns"]:
    """Images in another size, antialiased; `mode` as in torch's `interpolate`.

    CUDA sums its gradient in any order. Where deterministic algorithms are asked for, it is the
    product with two matrices: equal up to rounding.
    """
    options: dict[str, Any] = {"mode": mode, "antialias": True, "align_corners": False}
    if not torch.are_deterministic_algorithms_enabled():
        return F.interpolate(images, size, **options)
    rows, columns = (
        F.interpolate(torch.eye(before)[None, None], (before, after), **options)[0, 0].to(images)
        for before, after in zip(images.shape[-2:], size, strict=True)
    )
    return rows.T @ images @ columns


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
