"""How many numbers are trained, and in how many bytes the base is held: counted from names and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from .. import config
from ..models.quantization import is_quantized, stored_bytes

Shapes = Mapping[str, Sequence[int]]
BYTES = {"float32": 4, "bfloat16": 2}


def lora_parameters(
    parameters: Shapes, lora: config.LoRAConfig, default_targets: Sequence[str]
) -> int:
    """Numbers in the adapters: rank·(inputs + outputs) for each layer whose name is a target or ends in one (peft's rule)."""
    targets = tuple(lora.targets or default_targets)
    adapted = [
        shape
        for name, shape in _layers(parameters)
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    return sum(lora.rank * (math.prod(shape[1:]) + shape[0]) for shape in adapted)


def base_bytes(parameters: Shapes, model: config.ModelConfig) -> int:
    """Bytes of a frozen denoiser: layers of the repeated blocks in the bits asked for, the rest in the model's dtype."""
    everything = sum(math.prod(shape) for shape in parameters.values()) * BYTES[model.dtype]
    if model.quantization is None:
        return everything
    rounded = [shape for name, shape in _layers(parameters) if is_quantized(name, shape)]
    return everything + sum(
        stored_bytes(shape, model.quantization) - math.prod(shape) * BYTES[model.dtype]
        for shape in rounded
    )


def gathered_bytes(parameters: Shapes, width: int, with_gradient: bool) -> int:
    """Bytes a rank holds of a sharded network at the busiest moment, in `width` bytes a number.

    What lies outside the blocks is whole throughout; of the blocks one is in use and the next on its way; a block's gradient
    is whole too, and once more in float32 while it is summed over the ranks.
    """
    blocks: dict[str, int] = {}
    for name, shape in parameters.items():
        pieces = name.split(".")
        number = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
        block = ".".join(pieces[: number + 1]) if number is not None else ""
        blocks[block] = blocks.get(block, 0) + math.prod(shape)
    around, largest = blocks.pop("", 0), max(blocks.values(), default=0)
    return (around + 2 * largest) * width + (
        largest * (width + BYTES["float32"]) if with_gradient else 0
    )


def _layers(parameters: Shapes) -> Iterator[tuple[str, Sequence[int]]]:
    """Linear layers and convolutions, by the names of their modules."""
    for name, shape in parameters.items():
        if name.endswith(".weight") and len(shape) >= 2:
            yield name.removesuffix(".weight"), shape
