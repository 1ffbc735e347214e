"""Reproducible draws: each depends on (seed, stream, step) and a sample's row in the global batch.

Numbers are drawn on the CPU and then moved, so a seed means the same noise on every device.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..types import Batch, Latents

NoiseScope = Literal["per_rank", "shared", "fixed"]
"""per_rank: one noise per sample; shared: one per update, for all samples and ranks; fixed: one for
all samples, ranks and updates."""
NOISE, FRESH_NOISE, NOISE_LEVEL, STEPS, TRANSITION, KL_NOISE, KL_LEVEL = 1, 2, 3, 4, 5, 6, 7
"""Streams of random numbers: each use draws from its own."""


def generator_for(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that depends only on (seed, *keys): a stream, a step, an index, ...

    Keys are hashed, never added: another key, or one key more, gives an independent stream.
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def update_generator(batch: Batch, stream: int, index: int = 0) -> torch.Generator:
    """The generator of one stream in one update, the same on all ranks and accumulated batches.

    `index` separates several draws of one stream within the update. Per-sample draws go through
    `draw_rows`.
    """
    return generator_for(batch.seed, stream, batch.step, 0, index, 0)


def draw_rows(batch: Batch, draw: Callable[[int], Tensor]) -> Tensor:
    """Call `draw(n)` for the n rows of the update's global batch; returns the rows of this batch.

    So a draw does not depend on the number of ranks or accumulated batches.
    """
    b = len(batch.prompts)
    n = b if batch.global_size is None else batch.global_size
    assert batch.offset + b <= n, f"rows {batch.offset}..{batch.offset + b} of {n}"
    return draw(n)[batch.offset : batch.offset + b]


def draw_noise(
    shape: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal float32 numbers of `shape`, drawn on the CPU and moved to `device`."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(device)


def batch_noise(
    batch: Batch,
    stream: int,
    shape: tuple[int, ...],
    scope: NoiseScope = "per_rank",
    index: int = 0,
) -> Latents:
    """Noise of `shape` (b, c, h, w) on the CPU."""
    if scope == "per_rank":
        generator = update_generator(batch, stream, index)
        return draw_rows(batch, lambda n: draw_noise((n, *shape[1:]), generator))
    update = () if scope == "fixed" else (batch.step, 0)
    generator = generator_for(batch.seed, stream, *update, index)
    return draw_noise((1, *shape[1:]), generator).expand(*shape)
