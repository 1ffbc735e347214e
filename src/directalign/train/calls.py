"""What an update costs in the currency that all methods share: samples through the denoiser, with and without gradient.

A call with classifier-free guidance counts twice, since the network runs twice; so does a step whose activations are
recomputed in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CallCounter:
    """Counts from the moment it is made; `taken` gives what came since it was last asked."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._forward, self._backward = 0, 0
        denoiser.register_forward_hook(self._count)

    def taken(self) -> tuple[int, int]:
        """Samples through the network, and how many of them carried a gradient."""
        counts = self._forward, self._backward
        self._forward, self._backward = 0, 0
        return counts

    def _count(self, module: nn.Module, given: Any, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else output[0]
        self._forward += len(tensor)
        if torch.is_grad_enabled() and tensor.requires_grad:
            self._backward += len(tensor)
