"""The moving average of the trained weights, kept by diffusers' `EMAModel`, with a context that puts it in the network's place.

Its decay warms up: min(ema_decay, n / (9 + n)) at update n, 0 at the first, so short runs are not stuck at their start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Average:
    """The averaged copy of `parameters`, by the same names."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.model = EMAModel(self.parameters.values(), decay=decay)

    def update(self) -> None:
        """Take in the weights after an optimiser update."""
        self.model.step(self.parameters.values())

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The network wears the averaged weights inside, its own again outside, also after an error."""
        self.model.store(self.parameters.values())
        self.model.copy_to(self.parameters.values())
        try:
            yield
        finally:
            self.model.restore(self.parameters.values())

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name, to be read or filled; sharded where the weights are."""
        return dict(zip(self.parameters, self.model.shadow_params, strict=True))

    def continue_after(self, num_updates: int) -> None:
        """Go on with `tensors`, filled with an average that has seen `num_updates` updates."""
        self.model.optimization_step = num_updates
