"""What an update costs in the currency that all methods share: samples through the denoiser, with and without gradient.

A call with classifier-free guidance counts twice, since the network runs twice. A step whose activations are recomputed
in the backward pass is two calls forward and one backward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class CallCounter:
    """Counts from the moment it is made; `taken` gives what came since it was last asked."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._forward, self._backward = 0, 0
        denoiser.register_forward_hook(self._count)

    def taken(self) -> tuple[int, int]:
        """Samples through the network, and samples that a gradient came back through."""
        counts = self._forward, self._backward
        self._forward, self._backward = 0, 0
        return counts

    def _count(self, module: nn.Module, given: Any, output: Any) -> None:
        pred = output if isinstance(output, Tensor) else output[0]
        if isinstance(pred, Tensor):
            self._count_call(pred, len(pred))
        else:  # some networks return a list of samples
            for sample in pred:
                self._count_call(sample, 1)

    def _count_call(self, pred: Tensor, samples: int) -> None:
        self._forward += samples
        if pred.requires_grad:
            pred.register_hook(lambda gradient: self._count_backward(samples))

    def _count_backward(self, samples: int) -> None:
        self._backward += samples
