"""How many bytes of tensors are alive, and were at most: counted at every operation, on real tensors and on fake ones alike.

A dispatch mode sees each tensor that an operation makes, forward and backward, and a weak reference to its storage tells
when it is gone. So nothing has to be known of a network to say what its call costs, and with fake tensors nothing is computed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveStorages(TorchDispatchMode):
    """Counts storages made inside the context; `now` are the bytes alive, `peak` the most there were. `resident` tensors do not count."""

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._resident = [tensor.untyped_storage() for tensor in resident]
        self._alive: dict[int, weakref.ref[torch.UntypedStorage] | None] = dict.fromkeys(
            storage._cdata for storage in self._resident
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if (
                isinstance(made, Tensor)
                and (storage := made.untyped_storage())._cdata not in self._alive
            ):
                self._alive[storage._cdata] = weakref.ref(
                    storage, partial(self._gone, storage._cdata, storage.nbytes())
                )
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self.now -= size


@dataclass(frozen=True)
class Piece:
    """Bytes beyond the weights that one differentiable call needs: at most while it runs `forward`, `kept` until its backward pass,
    at most in that pass `backward` (what is kept included)."""

    forward: int
    kept: int
    backward: int

    def __add__(self, other: Piece) -> Piece:
        return Piece(
            self.forward + other.forward, self.kept + other.kept, self.backward + other.backward
        )

    def __sub__(self, other: Piece) -> Piece:
        return Piece(
            self.forward - other.forward, self.kept - other.kept, self.backward - other.backward
        )

    def times(self, factor: int) -> Piece:
        """The piece as often as that."""
        return Piece(self.forward * factor, self.kept * factor, self.backward * factor)


def measured(call: Callable[[], Tensor], resident: Iterable[Tensor]) -> Piece:
    """Runs `call` and, where its result has a graph, the backward pass; `resident` are weights and gradients that are there anyhow.

    The result itself counts as kept. With fake tensors nothing is computed; the caller has entered their mode.
    """
    with LiveStorages(resident) as live:
        out = call()
        forward, kept = live.peak, live.now
        live.peak = kept
        if out.requires_grad:
            out.backward(torch.empty_like(out))
        return Piece(forward, kept, live.peak)
