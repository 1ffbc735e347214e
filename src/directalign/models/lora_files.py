"""Adapters as tensors of a file: low-rank updates (LoRA, DoRA) and Kronecker products (LoKr).

Names are those of peft: LAYER.lora_A.weight, LAYER.lokr_w1, ... The scale alpha / rank is folded
into the second factor of a LoRA and the first of a LoKr, so a reader applies the factors as they
are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..types import DirectAlignError

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
LEFT, RIGHT, RIGHT_UP, RIGHT_DOWN = ".lokr_w1", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b"
SCALED = (UP, LEFT)
"""The factors that a scale of the update is folded into."""


@dataclass(frozen=True)
class LowRank:
    """Update up · down of a layer's weight: `down` (rank, in, ...), `up` (out, rank, ...).

    The factors of a convolution have two more dimensions. With `magnitude` (out values), a DoRA:
    each row of the updated weight has this norm.
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def size(self) -> int:
        """Weights of the layer that it updates."""
        return self.up.flatten(1).shape[0] * self.down.flatten(1).shape[1]

    def applied(self, weight: Tensor) -> Tensor:
        """The updated weight of a layer, float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        updated = weight.float() + product.reshape(weight.shape)
        if self.magnitude is None:
            return updated
        rows = updated.flatten(1)
        share = self.magnitude.float().flatten() / rows.norm(dim=1)
        return (share[:, None] * rows).reshape(weight.shape)


@dataclass(frozen=True)
class Kronecker:
    """Update left ⊗ right of a layer's weight: `left` (a, c), `right` (b, d), of (a·b, c·d)."""

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Weights of the layer that it updates."""
        return self.left.numel() * self.right.numel()

    def applied(self, weight: Tensor) -> Tensor:
        """The updated weight of a layer, float32."""
        update = torch.kron(self.left.float(), self.right.float().flatten(1))
        return weight.float() + update.reshape(weight.shape)


Update = LowRank | Kronecker


def updates_of(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Update]:
    """{layer: update}, sorted, of the tensors of `file`.

    Raises: DirectAlignError for tensors that are not the factors of updates.
    """
    ends = (DOWN, UP, MAGNITUDE, LEFT, RIGHT, RIGHT_UP, RIGHT_DOWN)
    layers: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            raise _no_adapter(file, name)
        layers.setdefault(name.removesuffix(end), {})[end] = tensors[name]
    if not layers:
        raise _no_adapter(file, "it is empty")
    return {layer: _update(layer, given, file) for layer, given in layers.items()}


def _update(layer: str, given: dict[str, Tensor], file: Path) -> Update:
    if given.keys() in ({DOWN, UP}, {DOWN, UP, MAGNITUDE}):
        down, up, magnitude = given[DOWN], given[UP], given.get(MAGNITUDE)
        fits = down.ndim == up.ndim and down.ndim in (2, 4) and len(down) == up.shape[1]
        if not fits or (magnitude is not None and magnitude.numel() != len(up)):
            raise DirectAlignError(
                f"{file}: {layer} has factors of shapes {tuple(down.shape)} and {tuple(up.shape)}, "
                "which fit no layer; restore the file"
            )
        return LowRank(down, up, magnitude)
    if given.keys() == {LEFT, RIGHT}:
        return Kronecker(given[LEFT], given[RIGHT])
    if given.keys() == {LEFT, RIGHT_UP, RIGHT_DOWN}:
        up, down = given[RIGHT_UP], given[RIGHT_DOWN]
        if up.ndim == down.ndim == 2 and up.shape[1] == len(down):
            return Kronecker(given[LEFT], up @ down)
    raise _no_adapter(file, f"{layer}{min(given)}")


def _no_adapter(file: Path, what: str) -> DirectAlignError:
    return DirectAlignError(
        f"{file}: not a LoRA: {what}; give a run that directalign train finished"
    )


def scaled(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The tensors of updates that are `factor` times as large."""
    return {
        name: tensor * factor if name.endswith(SCALED) else tensor
        for name, tensor in tensors.items()
    }


def plain_updates(updates: Mapping[str, Update], what: str, remedy: str) -> dict[str, LowRank]:
    """The updates, if all are those of a plain LoRA.

    Raises: DirectAlignError "`what`: ..., `remedy`" for a DoRA or LoKr.
    """
    found: dict[str, LowRank] = {}
    for layer, update in updates.items():
        if isinstance(update, Kronecker) or update.magnitude is not None:
            kind = "LoKr" if isinstance(update, Kronecker) else "DoRA"
            raise DirectAlignError(f"{what}: the run trained a {kind}, not a plain LoRA; {remedy}")
        found[layer] = update
    return found
