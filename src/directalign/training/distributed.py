"""The processes that train together, as torchrun starts them, and sharding with FSDP2 (`fully_shard`).

With `data` parallelism gradients are averaged over the ranks. With `sharded` every weight, gradient and moment is split: the
denoiser's repeated blocks are gathered one at a time for a forward or backward pass. Shards are float32; where the network
computes in bfloat16, blocks are gathered in bfloat16 and gradients reduced in float32. Every rank takes part in every
call of the network, in the same order. With a single process all collectives are the identity.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import empty as distributed_empty

from .. import config
from ..interfaces import Model
from ..types import DirectAlignError

TIMEOUT = timedelta(minutes=30)
"""A collective waits this long for ranks that are alive but slow. A dead rank closes its connections and fails it at once."""


@dataclass(frozen=True)
class TorchProcessGroup:
    """This process among those that train together; `rank` counts from 0, rank 0 writes the files.

    `restarts`: how often torchrun has restarted all processes after a failure.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks. A weight that no rank reached keeps none; sharded ones are means already."""
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not whole:
            return
        reached = self.sum(
            torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)
        ).tolist()
        grads = [_gradient_of(p) for p, count in zip(whole, reached, strict=True) if count]
        with _collective():
            for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
                assert work is not None, "this process is not in the group"
                work.wait()
        torch._foreach_div_(grads, self.size)

    def broadcast(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the weights of rank 0; sharded ones stay as they are."""
        with _collective():
            for p in parameters:
                if self.size > 1 and not isinstance(p, DTensor):
                    dist.broadcast(p.detach(), src=0)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks of an equally shaped tensor, on the CPU."""
        total = values.detach().cpu().clone()
        if self.size > 1:
            with _collective():
                dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        """Equally shaped tensors of all ranks, joined along their first dimension in the order of ranks, on the device they came from."""
        if self.size == 1:
            return values
        own = values.detach().cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _collective():
            dist.all_gather(parts, own)
        return torch.cat(parts).to(values.device)

    def texts(self, text: str) -> list[str]:
        """The texts of all ranks, in their order."""
        content = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(content)])).tolist()
        padded = torch.nn.functional.pad(content, (0, max(lengths) - len(content)))
        rows = self.gather(padded[None])
        return [
            bytes(row[: length - 1].tolist()).decode()
            for row, length in zip(rows, lengths, strict=True)
        ]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Return once every rank has come here."""
        self.sum(torch.zeros(1))


@contextmanager
def _collective() -> Iterator[None]:
    """A collective that fails because another rank has ended raises DirectAlignError."""
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DirectAlignError(
            f"lost the connection to another rank: its own message says why ({reason:.200}); "
            "the last whole checkpoint stays: continue with --resume"
        ) from error


def _gradient_of(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


@contextmanager
def process_group() -> Iterator[TorchProcessGroup]:
    """The process group that torchrun's environment describes: gloo between CPUs, nccl between GPUs.

    Raises: DirectAlignError for an incomplete environment, or processes that cannot connect.
    """
    size, local_rank = (
        _number(name, default) for name, default in (("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if size == 1:
        yield TorchProcessGroup(device=_device(local_rank))
        return
    missing = [
        each
        for each in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if not os.environ.get(each)
    ]
    if missing:
        raise DirectAlignError(
            f"{', '.join(missing)} not set, though WORLD_SIZE is {size}: launch with torchrun (docs/scaling.md)"
        )
    device, restarts = _device(local_rank), _number("TORCHELASTIC_RESTART_COUNT", 0)
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun may keep the store over a restart, with the addresses of the processes that ended
        own = dist.PrefixStore(f"directalign-{restarts}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:
        meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise DirectAlignError(
            f"cannot meet the other processes at {meeting} ({reason})"
        ) from error
    ranks = TorchProcessGroup(rank, size, device, restarts)
    yield ranks  # after an error the process ends; a barrier or an orderly shutdown would wait for ranks that may be gone
    ranks.wait()
    dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise DirectAlignError(
            f"{name} is {text!r}, not a number: launch with torchrun (docs/scaling.md)"
        )
    return int(text)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise DirectAlignError(
            f"{local_rank + 1} processes on a machine with {count} GPUs: "
            f"start {count} (torchrun --nproc-per-node {count})"
        )
    index = 0 if count == 1 else local_rank  # a launcher may show each process its own GPU alone
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def is_sharded_run(run: config.RunConfig, ranks: TorchProcessGroup) -> bool:
    """Whether the ranks split the network: `train.parallel`, where there are several."""
    return ranks.size > 1 and (
        run.train.parallel == "sharded"
        or (run.train.parallel == "auto" and run.model.tune == "full")
    )


def shard(denoiser: nn.Module, model: config.ModelConfig, ranks: TorchProcessGroup) -> None:
    """Split the denoiser in place, block by block: each is moved to this rank's device, and all of it but one share is dropped."""
    warnings.filterwarnings(
        "ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning
    )  # nothing changes the answers of blocks in place
    narrow = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )  # families cast what must be cast
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(ranks.device.type, (ranks.size,)),
        "mp_policy": narrow if model.dtype == "bfloat16" else MixedPrecisionPolicy(),
        "reshard_after_forward": True,  # of the root too: between two forward passes its weights may change hands
    }
    repeated = set(getattr(denoiser, "_repeated_blocks", None) or ())
    for block in [each for each in denoiser.modules() if type(each).__name__ in repeated]:
        fully_shard(block, **settings)
    fully_shard(denoiser, **settings)


def whole(tensor: Tensor) -> Tensor:
    """A plain tensor as it is, a sharded one put together on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def empty_beside(weight: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor on the device of `weight`, split by its first dimension where that is."""
    if isinstance(weight, DTensor):
        return distributed_empty(
            shape, dtype=dtype, device_mesh=weight.device_mesh, placements=weight.placements
        )
    return torch.empty(shape, dtype=dtype, device=weight.device)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module was made from: sharding puts one of its own in front."""
    return next(each for each in type(module).__mro__ if not issubclass(each, FSDPModule))


def save(model: Model, folder: Path, ranks: TorchProcessGroup) -> None:
    """`model.save` on rank 0; of a sharded denoiser, what is trained is first brought together in its memory, tensor by tensor."""
    if not isinstance(model.denoiser, FSDPModule):
        if ranks.is_main:
            model.save(folder)
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    tensors = get_model_state_dict(model.denoiser, options=options)
    if ranks.is_main:
        with _with_denoiser(model, _plain_copy(model.denoiser, tensors)):
            model.save(folder)


def _plain_copy(denoiser: Any, tensors: dict[str, Any]) -> nn.Module:
    """The network as it was before sharding, with these tensors; the weights of a frozen base stay away."""
    made_from: Any = class_of(denoiser)
    with torch.device("meta"):
        plain = made_from.from_config(denoiser.config)
        for name, adapter in getattr(denoiser, "peft_config", {}).items():
            plain.add_adapter(adapter, adapter_name=name)
    plain.load_state_dict(tensors, strict=not getattr(denoiser, "peft_config", None), assign=True)
    return plain


@contextmanager
def _with_denoiser(model: Model, denoiser: nn.Module) -> Iterator[None]:
    own, model.denoiser = model.denoiser, denoiser
    try:
        yield
    finally:
        model.denoiser = own
