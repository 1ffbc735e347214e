"""The processes that train together, as `interfaces.Together` and a little more; with `sharding` and `watch`, all that knows torch.distributed.

Gradients are averaged over the ranks before the step, and a rank that dies ends the run with the reason. A single process
needs none of it: every function of `Ranks` is then the identity.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from ..types import DirectAlignError
from .interrupt import Interrupted
from .launch import Launch, launched
from .watch import Watch

LONGEST_WAIT = timedelta(minutes=30)
"""How long a collective waits for ranks that are alive but slow; those that are gone are noticed by `watch` within a minute."""
LAST_RESORT = 30.0
"""Seconds after a failure when a process that a GPU still holds is ended."""
FOREIGN = (RuntimeError, CheckpointException)
"""What libraries raise in a collective that lacks a rank."""


@dataclass(frozen=True)
class Ranks:
    """This process among its fellows; `rank` counts from 0, rank 0 writes the files."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch: Watch | None = None
    attempt: int = 0
    """How often the launcher has started anew after a failure."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks. A weight that no rank reached keeps none; sharded ones are means already."""
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not whole:
            return
        reached = self.sum(torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)).tolist()
        grads = [_gradient_of(p) for p, count in zip(whole, reached, strict=True) if count]
        with self._blaming():
            for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
                assert work is not None, "this process is not in the group"
                work.wait()
        torch._foreach_div_(grads, self.size)

    def broadcast(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the weights of rank 0; sharded ones stay as they are."""
        with self._blaming():
            for p in parameters:
                if self.size > 1 and not isinstance(p, DTensor):
                    dist.broadcast(p.detach(), src=0)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks of an equally shaped tensor, on the CPU."""
        total = values.detach().cpu().clone()
        if self.size > 1:
            with self._blaming():
                dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        """Equally shaped tensors of all ranks, joined along their first dimension in the order of ranks, on the device they came from."""
        if self.size == 1:
            return values
        own = values.detach().cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._blaming():
            dist.all_gather(parts, own)
        return torch.cat(parts).to(values.device)

    def texts(self, text: str) -> list[str]:
        """The texts of all ranks, in their order."""
        content = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(content)])).tolist()
        padded = torch.nn.functional.pad(content, (0, max(lengths) - len(content)))
        rows = self.gather(padded[None])
        return [bytes(row[: length - 1].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Return once every rank has come here."""
        self.sum(torch.zeros(1))

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        """A collective inside that fails for want of a rank says which."""
        try:
            yield
        except FOREIGN as error:
            self.blame(error)
            raise

    def blame(self, error: BaseException) -> None:
        """Raise DirectAlignError if it is another rank's end that made a collective fail with `error`."""
        if self.watch is not None and isinstance(error, FOREIGN) and not isinstance(error, torch.OutOfMemoryError):
            reason = self.watch.look_closer()
            if reason is not None:
                raise DirectAlignError(reason) from error


def _gradient_of(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that the environment announces, gloo between CPUs and nccl between GPUs; they part at the end, or when one fails.

    Raises DirectAlignError naming the rank that is gone, on all others.
    """
    launch = launched(os.environ)
    device = _device_of(launch)
    if launch.size == 1:
        yield Ranks(device=device)
        return
    ranks = _join(launch, device)
    try:
        yield ranks
    except Interrupted:  # on all ranks together
        _part(ranks)
        raise
    except BaseException as error:
        _fail(ranks, error)
        raise
    _part(ranks)


def _device_of(launch: Launch) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = 0 if count == 1 else launch.local_rank  # a launcher may show each process its own GPU alone
    if launch.local_rank >= count > 1:
        raise DirectAlignError(f"{launch.local_rank + 1} processes on a machine with {count} GPUs: start {count} (torchrun --nproc-per-node {count})")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join(launch: Launch, device: torch.device) -> Ranks:
    host, hosts = "the launcher" if launch.is_hosted else "rank 0", launch.rank == 0 and not launch.is_hosted
    try:
        store = dist.TCPStore(launch.address, launch.port, is_master=hosts, wait_for_workers=False)
        own = dist.TCPStore(launch.address, launch.port, is_master=False, wait_for_workers=False)
    except RuntimeError as error:
        raise DirectAlignError(f"cannot meet the other processes at {launch.address}:{launch.port} ({str(error).splitlines()[0]})") from error
    watch = Watch(dist.PrefixStore(f"watch-{launch.attempt}", own), launch.rank, launch.size, host)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    group = dist.PrefixStore(f"group-{launch.attempt}", store)
    dist.init_process_group(backend, store=group, rank=launch.rank, world_size=launch.size, timeout=LONGEST_WAIT)
    return Ranks(launch.rank, launch.size, device, watch, launch.attempt)


def _part(ranks: Ranks) -> None:
    """Leave in order: nobody watches any more when the first is gone."""
    assert ranks.watch is not None
    ranks.wait()
    ranks.watch.leave()
    ranks.wait()
    dist.destroy_process_group()


def _fail(ranks: Ranks, error: BaseException) -> None:
    """Tell the others why this rank ends; raises DirectAlignError where it is one of them that is gone."""
    assert ranks.watch is not None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others when one fails; this one has something to say first
    if ranks.device.type == "cuda":
        faulthandler.dump_traceback_later(LAST_RESORT, exit=True)
    try:
        ranks.blame(error)
    except DirectAlignError as found:
        ranks.watch.leave(str(found))
        raise
    ranks.watch.leave(str(error) or type(error).__name__)
