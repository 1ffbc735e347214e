"""Frozen text encoders behind one call: prompts in, the tensors that a denoiser is conditioned on out.

`mode` says where the encoders live: kept on the device, or on the CPU and brought over while they encode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Embed = Callable[[list[str]], dict[str, Tensor]]


class PromptEncoder:
    """`encoder(prompts)` gives tensors by name, each (b, ...), on the device, without gradient.

    `embed` turns prompts into those tensors with the help of `modules`, which are moved for it as `mode` says.
    """

    def __init__(self, modules: Mapping[str, nn.Module], embed: Embed, device: torch.device, mode: str) -> None:
        self.modules, self.embed, self.device, self.mode = dict(modules), embed, device, mode
        self._move(device if mode == "keep" else torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.mode == "keep":
            return self.embed(list(prompts))
        self._move(self.device)
        try:
            return self.embed(list(prompts))
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for module in self.modules.values():
            module.to(device)


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (1, n, ...) joined along their first dimension, shorter ones filled up with zeros at the end of their second."""
    longest = max(row.shape[1] if row.dim() > 1 else 0 for row in rows)
    filled = [row if row.dim() < 2 or row.shape[1] == longest else _filled(row, longest) for row in rows]
    return torch.cat(filled)


def _filled(row: Tensor, length: int) -> Tensor:
    extra = row.new_zeros(row.shape[0], length - row.shape[1], *row.shape[2:])
    return torch.cat([row, extra], 1)
