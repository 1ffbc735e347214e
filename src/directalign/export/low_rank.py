"""Low-rank updates by layer, read from a run's file, and put together where another layout has one layer for several of ours.

Updates of layers that read the same input stand exactly beside one another in the fused layer: the first factors are stacked,
the second ones lie on the diagonal, ranks add up, and up · down is that of the single layers row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..models.files import check_safetensors
from ..types import DirectAlignError

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LowRank:
    """An update up · down of a layer's weight: `down` (rank, in, ...), `up` (out, rank, ...); convolutions have two sides more."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return len(self.down)


def read_updates(file: Path, part: str) -> dict[str, LowRank]:
    """{layer of the denoiser: its update}, by name, from a run's `lora.safetensors`.

    Args:
        part: the denoiser's name in its pipeline, with which every key begins.
    Raises:
        DirectAlignError: no such file, a torn one, or one that holds anything but pairs of factors.
    """
    check_safetensors(file)
    tensors = load_file(file)
    layers = sorted({key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)})
    pairs = {key for layer in layers for key in (layer + DOWN, layer + UP)}
    odd = sorted(pairs ^ tensors.keys()) or [key for key in sorted(pairs) if not key.startswith(f"{part}.")]
    if odd or not layers:
        raise DirectAlignError(f"{file}: not a LoRA of a {part}: {odd[0] if odd else 'it is empty'}: give a run that directalign train finished")
    return {layer.removeprefix(f"{part}."): LowRank(tensors[layer + DOWN], tensors[layer + UP]) for layer in layers}


def fuse(parts: Mapping[int, LowRank], shares: tuple[int, ...]) -> LowRank:
    """One update of a layer that stacks `len(shares)` layers, of heights in these proportions; `parts` are those that are trained, by place.

    The rows of a part that is not trained are 0.
    """
    heights = {len(update.up) // shares[place] for place, update in parts.items()}
    if len(heights) != 1:
        raise DirectAlignError(
            f"layers of heights {sorted(len(each.up) for each in parts.values())} do not fuse in proportions {shares}: use --format diffusers"
        )
    ends = torch.tensor(shares).cumsum(0) * heights.pop()
    present = [parts[place] for place in sorted(parts)]
    up = present[0].up.new_zeros(int(ends[-1]), sum(each.rank for each in present))
    column = 0
    for place in sorted(parts):
        update, end = parts[place], int(ends[place])
        up[end - len(update.up) : end, column : column + update.rank] = update.up
        column += update.rank
    return LowRank(torch.cat([each.down for each in present]), up)
