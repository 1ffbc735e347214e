"""The known noise: drawn reproducibly, and put into clean latents.

Noise is drawn on the CPU and then moved, so that a seed means the same noise on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..types import Batch

NOISE, FRESH_NOISE, MOVE, STEPS, TRANSITION = 1, 2, 3, 4, 5
"""Streams of random numbers: each use draws from its own."""


def generator_for(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that depends on (seed, *keys) and nothing else; keys name a stream, a step, a rank, ...

    Another key, or one key more, is another stream: the numbers are hashed, never added.
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def generator_of(batch: Batch, stream: int, index: int = 0) -> torch.Generator:
    """The generator of one use of random numbers in one update, the same for all batches and ranks that share it.

    `index` tells apart the draws of a stream within the update. What is drawn per sample goes through `for_update`.
    """
    return generator_for(batch.seed, stream, batch.step, 0, index, 0)


def for_update(batch: Batch, draw: Callable[[int], Tensor]) -> Tensor:
    """`draw(n)` makes n rows; they are drawn for the whole global batch of the update, and this batch's own are returned.

    So a sample's draw depends on its place in the update alone, not on how many ranks and accumulated batches share it.
    """
    b = len(batch.prompts)
    total = b if batch.total is None else batch.total
    assert batch.place + b <= total, f"rows {batch.place}..{batch.place + b} of {total}"
    return draw(total)[batch.place : batch.place + b]


def draw_noise(shape: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 numbers of `shape`, drawn on the CPU and moved to `device`."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(device)
