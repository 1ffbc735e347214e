"""First Block Cache of diffusers while images to train on are sampled (`rollout.cache`).

A call whose first block changes its input nearly as in the last whole call takes the change that
the other blocks made there. The decision is one for the whole batch. Each pass of classifier-free
guidance has a state of its own. Sharded weights are refused: all processes gather them together,
and each skips by its own images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import FirstBlockCacheConfig

from ..types import DirectAlignError


def check_block_cache(architecture: Any, name: str, threshold: float) -> None:
    """Raise unless diffusers' cache supports the blocks of this architecture, called `name`."""
    if not getattr(architecture, "caches_blocks", False):
        raise DirectAlignError(
            f"rollout.cache: {threshold}, and diffusers has no First Block Cache for the blocks of "
            f"model.architecture: {name}: remove rollout.cache"
        )


@contextmanager
def block_cache(denoiser: Any, threshold: float) -> Iterator[None]:
    """Calls inside, without gradient, may skip blocks; the first one skips none.

    `threshold`: mean absolute difference of the first block's changes, relative to the former, up
    to which the others are skipped.
    """
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        denoiser.disable_cache()
