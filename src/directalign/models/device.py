"""Where a denoiser goes when it is loaded: to its family's device, or to another one, for a trainer that will split it from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_elsewhere: ContextVar[torch.device | None] = ContextVar("denoiser_device", default=None)


@contextmanager
def denoiser_on(device: torch.device | None) -> Iterator[None]:
    """Denoisers that are loaded inside go to this device; None leaves the choice to the model."""
    token = _elsewhere.set(device)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def home_of_denoiser(device: torch.device) -> torch.device:
    """`device`, that of the model, unless the loader said otherwise."""
    return _elsewhere.get() or device
