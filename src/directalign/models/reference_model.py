"""The model before training, beside the one in training: adapters off, or a frozen copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from . import lora
from .lora import has_adapters


class ReferenceModel:
    """The weights of `denoiser` at construction; with LoRA nothing is copied."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser: Any = denoiser
        self.has_adapters = has_adapters(denoiser)
        trained = {} if self.has_adapters else lora.trained(denoiser)
        self.weights = {name: each.detach().clone() for name, each in trained.items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The denoiser has the reference weights inside, its own outside, also after an error.

        For calls without gradient.
        """
        if self.has_adapters:
            self.denoiser.disable_adapters()
        else:
            self._swap()
        try:
            yield
        finally:
            if self.has_adapters:
                self.denoiser.enable_adapters()
            else:
                self._swap()

    def _swap(self) -> None:
        """In place: a sharded weight is bound to the memory that it is gathered from."""
        for name, parameter in lora.trained(self.denoiser).items():
            own = parameter.detach().clone()
            parameter.detach().copy_(self.weights[name])
            self.weights[name].copy_(own)
