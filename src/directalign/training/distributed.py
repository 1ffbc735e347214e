"""The process group of a training run (as torchrun starts it) and FSDP2 sharding (`fully_shard`).

`data` parallelism averages gradients over the ranks. `sharded` splits every weight, gradient and
moment; the denoiser's repeated blocks are gathered one at a time for a forward or backward pass.
`hybrid` splits them within each node alone and averages gradients between nodes (HSDP).
Shards are float32; a bfloat16 network gathers blocks in bfloat16 and reduces gradients in float32.
Every rank takes part in every call of the network, in the same order. With a single process all
collectives are the identity.
"""

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
"""Of a collective, for slow ranks. A dead rank closes its connections and fails it at once."""
MESH = "copies", "shards"
"""Names of the dimensions of the mesh of ranks; the last one splits the network."""


@dataclass(frozen=True)
class TorchProcessGroup:
    """This process and its group: `rank` counts from 0, rank 0 writes the files.

    `restarts`: how often torchrun has restarted all processes after a failure. `per_node`: the
    processes of this machine; 0 if the launcher did not say.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    restarts: int = 0
    per_node: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks; sharded ones already are means.

        A parameter without a gradient on all ranks keeps none.
        """
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not whole:
            return
        has_grad = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)
        grads = list[Tensor]()
        for p, count in zip(whole, self.sum(has_grad).tolist(), strict=True):
            if count:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                grads.append(p.grad)
        with _collective():
            for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
                assert work is not None, "this process is not in the group"
                work.wait()
        torch._foreach_div_(grads, self.size)

    def broadcast(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy the weights of rank 0 to every rank; sharded ones stay as they are."""
        with _collective():
            for p in parameters:
                if self.size > 1 and not isinstance(p, DTensor):
                    dist.broadcast(p.detach(), src=0)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks of an equally shaped tensor, on its own device."""
        total = values.detach().clone()
        if self.size > 1:
            with _collective():
                dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        """Equally shaped tensors of all ranks, concatenated by rank, on their own device."""
        if self.size == 1:
            return values
        own = values.detach().cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _collective():
            dist.all_gather(parts, own)
        return torch.cat(parts).to(values.device)

    def gather_texts(self, text: str) -> list[str]:
        """The texts of all ranks, by rank."""
        texts: list[Any] = [text] * self.size
        if self.size > 1:
            with _collective():
                dist.all_gather_object(texts, text)
        return texts

    def first_text(self, text: str) -> str:
        """The first text that is not empty, by rank; "" if all are."""
        return next(filter(None, self.gather_texts(text)), "")

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum(torch.zeros(1))


@contextmanager
def _collective() -> Iterator[None]:
    """A collective that fails because another rank has ended raises DirectAlignError."""
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DirectAlignError(
            f"lost the connection to another rank, see its own error ({reason:.200}); the last "
            "checkpoint is kept: continue with --resume"
        ) from error


@contextmanager
def process_group(device: torch.device | None = None) -> Iterator[TorchProcessGroup]:
    """The process group of torchrun's environment: gloo between CPUs, nccl between GPUs.

    With `device` it is that device alone.

    Raises: DirectAlignError for an incomplete environment, or processes that cannot connect.
    """
    if device is not None:
        yield TorchProcessGroup(device=device)
        return
    size, local_rank = _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    if size == 1:
        yield TorchProcessGroup(device=_device(local_rank))
        return
    required = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in required if not os.environ.get(name)]:
        raise DirectAlignError(
            f"{', '.join(missing)} not set, though WORLD_SIZE is {size}: launch with torchrun "
            "(docs/scaling.md)"
        )
    device, restarts = _device(local_rank), _number("TORCHELASTIC_RESTART_COUNT", 0)
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun may reuse the store after a restart, with the addresses of ended processes
        own = dist.PrefixStore(f"directalign-{restarts}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:
        raise DirectAlignError(
            f"cannot connect to the other processes at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]})"
        ) from error
    group = TorchProcessGroup(rank, size, device, restarts, _number("LOCAL_WORLD_SIZE", 0))
    yield group  # no clean-up after an error: a barrier would wait for ranks that may have ended
    group.barrier()
    dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        remedy = "launch with torchrun (docs/scaling.md)"
        raise DirectAlignError(f"{name} is {text!r}, not a number: {remedy}")
    return int(text)


def _device(local_rank: int) -> torch.device:
    """A GPU of CUDA, else Apple's if this process is the only one (no backend connects several)."""
    if not torch.cuda.is_available():
        alone = _number("WORLD_SIZE", 1) == 1
        return torch.device("mps" if alone and torch.backends.mps.is_available() else "cpu")
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise DirectAlignError(
            f"{local_rank + 1} processes on a machine with {count} GPUs: "
            f"start {count} (torchrun --nproc-per-node {count})"
        )
    index = 0 if count == 1 else local_rank  # some launchers expose one GPU to each process
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def is_sharded_run(run: config.RunConfig, group: TorchProcessGroup) -> bool:
    """Whether the network is sharded: by `train.parallel`, with several ranks."""
    automatic = run.train.parallel == "auto" and run.model.tune == "full"
    return group.size > 1 and (run.train.parallel in ("sharded", "hybrid") or automatic)


def check_cached_ranks(run: config.RunConfig, group: TorchProcessGroup) -> None:
    """Raise DirectAlignError if ranks would skip blocks (`rollout.cache`) of shared weights."""
    if run.rollout.cache is not None and is_sharded_run(run, group):
        raise DirectAlignError(
            f"rollout.cache: {run.rollout.cache}: each process skips blocks by its own images, and "
            "sharded weights are gathered by all at once: set train.parallel: data, or remove "
            "rollout.cache"
        )


def shards_of(run: config.RunConfig, group: TorchProcessGroup) -> int:
    """The number of ranks that hold the network between them: 1 if it is not sharded.

    Raises: DirectAlignError for `hybrid` where the nodes have not the same number of ranks.
    """
    if not is_sharded_run(run, group):
        return 1
    if run.train.parallel != "hybrid":
        return group.size
    if group.per_node < 1 or group.size % group.per_node:
        raise _unequal(f"{group.size}, {group.per_node or 'an unknown number'} on a node")
    return group.per_node


def _unequal(given: str) -> DirectAlignError:
    return DirectAlignError(
        "train.parallel: hybrid needs the same number of processes on every node, and there are "
        f"{given}: launch as many on each with torchrun (docs/scaling.md; for directalign check, "
        "--per-node), or set parallel: sharded"
    )


def shard(denoiser: nn.Module, run: config.RunConfig, group: TorchProcessGroup) -> None:
    """Shard the denoiser in place, block by block, each moved to this rank's device.

    Raises: DirectAlignError as `shards_of`.
    """
    if run.train.parallel == "hybrid":  # each rank knows its own node alone
        every = group.gather(torch.tensor([group.per_node])).tolist()
        if len(set(every)) > 1:
            raise _unequal(f"from {min(every)} to {max(every)} on a node")
    model, shards = run.model, shards_of(run, group)
    sizes = (group.size,) if shards == group.size else (group.size // shards, shards)
    # no block's output is changed in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(group.device.type, sizes, mesh_dim_names=MESH[-len(sizes) :]),
        "mp_policy": MixedPrecisionPolicy(),
        "reshard_after_forward": True,  # the root too: weights may be swapped between two calls
    }
    if model.dtype == "bfloat16":  # inputs are cast by the models
        settings["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    repeated = set(getattr(denoiser, "_repeated_blocks", None) or ())
    for block in [each for each in denoiser.modules() if type(each).__name__ in repeated]:
        fully_shard(block, **settings)
    fully_shard(denoiser, **settings)


def unsharded(tensor: Tensor) -> Tensor:
    """A plain tensor as it is, a sharded one gathered on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def empty_like_sharded(weight: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor on the device of `weight`, sharded by its first dimension if that is."""
    if isinstance(weight, DTensor):
        mesh, placements = weight.device_mesh, weight.placements
        return distributed_empty(shape, dtype=dtype, device_mesh=mesh, placements=placements)
    return torch.empty(shape, dtype=dtype, device=weight.device)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module without FSDP's own class in front."""
    return next(each for each in type(module).__mro__ if not issubclass(each, FSDPModule))


def save(model: Model, folder: Path, group: TorchProcessGroup) -> None:
    """`model.save` on rank 0; sharded trained weights are gathered in its memory first."""
    if not isinstance(model.denoiser, FSDPModule):
        if group.is_main:
            model.save(folder)
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    tensors = get_model_state_dict(model.denoiser, options=options)
    if group.is_main:
        denoiser = model.denoiser
        model.denoiser = _plain_copy(denoiser, tensors)
        try:
            model.save(folder)
        finally:
            model.denoiser = denoiser


def _plain_copy(denoiser: Any, tensors: dict[str, Any]) -> nn.Module:
    """The network before sharding with these tensors; a frozen base stays on the meta device."""
    adapters = getattr(denoiser, "peft_config", None) or {}
    with torch.device("meta"):
        plain: Any = class_of(denoiser)
        plain = plain.from_config(denoiser.config)
        for name, adapter in adapters.items():
            plain.add_adapter(adapter, adapter_name=name)
    plain.load_state_dict(tensors, strict=not adapters, assign=True)
    return plain
