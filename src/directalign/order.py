"""Which items of a data set one step sees: a pure function of the step, so a resumed run sees exactly what it would have seen.

The data is read epoch after epoch, each in its own seeded permutation; ranks and accumulated batches take neighbouring
slices of that endless row. Nothing is kept between calls but a cache.
"""

from __future__ import annotations

import random
from functools import lru_cache


@lru_cache(maxsize=4)
def permutation(length: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch: a permutation of range(length) that depends on the three numbers alone."""
    order = list(range(length))
    random.Random(f"directalign order {seed} {epoch}").shuffle(order)
    return tuple(order)


def indices(length: int, seed: int, *, step: int, rank: int, world_size: int, size: int, micro: int, accumulation: int) -> list[int]:
    """Indices of the `size` items of micro-batch `micro` (of `accumulation`) at update `step` on `rank` (of `world_size`).

    Every item is seen once per epoch over all steps, micro-batches and ranks together; a batch may straddle two epochs.
    """
    assert length > 0 and 0 <= rank < world_size and 0 <= micro < accumulation, (length, rank, world_size, micro, accumulation)
    first = ((step * accumulation + micro) * world_size + rank) * size
    return [permutation(length, seed, place // length)[place % length] for place in range(first, first + size)]
