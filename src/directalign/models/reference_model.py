"""The model as it was before training, beside the one in training: adapters off, or a frozen copy of the weights put in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from . import lora


def has_adapters(denoiser: nn.Module) -> bool:
    """Whether LoRA is trained, so that the base model is still in there."""
    return bool(getattr(denoiser, "peft_config", None))


class ReferenceModel:
    """Remembers the weights of `denoiser` at the moment it is made; with LoRA nothing is copied."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser: Any = denoiser
        self.has_adapters = has_adapters(denoiser)
        self.weights = (
            {}
            if self.has_adapters
            else {name: each.detach().clone() for name, each in lora.trained(denoiser).items()}
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """The denoiser is the base model inside, itself again outside, also after an error. For calls without gradient."""
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
        """In place: a sharded weight is tied to the memory that it is gathered from."""
        for name, parameter in lora.trained(self.denoiser).items():
            own = parameter.detach().clone()
            parameter.detach().copy_(self.weights[name])
            self.weights[name].copy_(own)
