"""Data parallelism over the processes that `torchrun` starts; the only place that imports torch.distributed.

Every rank holds the whole network, draws its own prompts, and the gradients are averaged before the step. A single
process needs none of it: every function of `Ranks` is then the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=4)
"""How long ranks wait for one another: rank 0 alone draws the sample grids and measures."""


@dataclass(frozen=True)
class Ranks:
    """This process among its fellows; `rank` counts from 0, rank 0 writes the files."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks; a weight that one rank did not reach counts as 0 there."""
        if self.size == 1:
            return
        grads = [_gradient_of(p) for p in parameters]
        for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
            assert work is not None, "this process is not in the group"
            work.wait()
        torch._foreach_div_(grads, self.size)

    def broadcast(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the weights of rank 0."""
        if self.size > 1:
            for p in parameters:
                dist.broadcast(p.detach(), src=0)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks of an equally shaped tensor."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def gather(self, values: Tensor) -> Tensor:
        """Equally shaped tensors of all ranks, joined along their first dimension in the order of ranks."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values, device=self.device) for _ in range(self.size)]
        dist.all_gather(parts, values.to(self.device).contiguous())
        return torch.cat(parts).to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Return once every rank has come here."""
        if self.size > 1:
            dist.barrier()


def _gradient_of(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun announced in the environment: gloo on CPUs, nccl on GPUs; the group is left at the end."""
    size, rank, local_rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield Ranks(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks(rank, size, device)
    finally:
        dist.destroy_process_group()
