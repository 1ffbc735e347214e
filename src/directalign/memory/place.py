"""Where a run would train: how much memory there is, and what a GPU takes beside the tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

GIB = 2**30
CONTEXT = GIB
"""CUDA's context, its kernels and the workspaces of cuBLAS and cuDNN: .5 to 1.2 GiB by GPU and driver."""
FRAGMENTS = 0.08
"""Share of what comes and goes that the allocator holds in pieces too small to use."""


@dataclass(frozen=True)
class Place:
    """One device of `capacity` bytes, and how many ranks share the run; `is_here` where it is this machine's."""

    name: str
    capacity: int
    is_gpu: bool
    ranks: int = 1
    is_here: bool = True


def this_machine(ranks: int | None = None) -> Place:
    """The first GPU, else the CPU; ranks as torchrun announces them, unless given."""
    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Place(properties.name, properties.total_memory, True, ranks)
    return Place("the CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False, ranks)


def a_gpu(gibibytes: float | int, ranks: int | None = None) -> Place:
    """A GPU of that many GiB, as cards are named: 24 for a 24 GB card."""
    return Place(
        f"a GPU of {gibibytes:g} GB",
        int(gibibytes * GIB),
        True,
        ranks or int(os.environ.get("WORLD_SIZE", "1")),
        is_here=False,
    )


def binary(size: int) -> str:
    """Bytes in the units that GPUs are counted in: 5.4 GiB, 310 MiB, 12 KiB."""
    for factor, unit, digits in ((GIB, "GiB", 1), (2**20, "MiB", 0)):
        if size >= factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size / 1024:,.0f} KiB"
