"""The four global random states (Python, numpy, torch, CUDA).

Every update starts from a seed made of (seed, step), so that whatever draws from a global state (dropout, a library) draws
the same after a resume, however much was drawn between the updates and on however many processes it goes on: what is drawn
for a batch as a whole is one on all ranks. Checkpoints hold the states too, as plain values.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..core.noising import generator_for

GLOBAL_STREAM = 1_000_003
"""Keeps these seeds apart from those of the noise and the moves."""


def seed_all(seed: int) -> None:
    """Seed the four generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed the four generators for update `step` (0 is the first), alike on all ranks."""
    seed_all(generator_for(seed, GLOBAL_STREAM, step, 0).initial_seed())


def capture() -> dict[str, Any]:
    """The states of all generators: lists, numbers and byte tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore(state: Mapping[str, Any]) -> None:
    """Put all generators back where `capture` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
