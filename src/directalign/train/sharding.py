"""Full fine-tuning over several GPUs: every weight, gradient and moment is split over the ranks (FSDP2, `fully_shard`).

The denoiser's repeated blocks are gathered one at a time, for a forward or backward pass, and let go of again; so is what
lies around them. Shards are float32; where the network computes in bfloat16, so it is gathered, and gradients are summed in
float32. Every rank takes part in every call of the network, in the same order, with or without gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import empty as distributed_empty

from .. import config
from ..interfaces import Family
from .distributed import Ranks


def is_sharded_run(run: config.Run, ranks: Ranks) -> bool:
    """Whether the ranks split the network: `train.parallel`, where there are several."""
    return ranks.size > 1 and (run.train.parallel == "sharded" or (run.train.parallel == "auto" and run.model.tune == "full"))


def shard(denoiser: nn.Module, model: config.Model, ranks: Ranks) -> None:
    """Split the denoiser in place, block by block: each is moved to this rank's device, and all of it but one share is dropped."""
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)  # nothing changes the answers of blocks in place
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)  # families cast what must be cast
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
        return distributed_empty(shape, dtype=dtype, device_mesh=weight.device_mesh, placements=weight.placements)
    return torch.empty(shape, dtype=dtype, device=weight.device)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module was made from: sharding puts one of its own in front."""
    return next(each for each in type(module).__mro__ if not issubclass(each, FSDPModule))


def save(family: Family, folder: Path, ranks: Ranks) -> None:
    """`family.save` on rank 0; of a sharded denoiser, what is trained is first brought together in its memory, tensor by tensor."""
    if not isinstance(family.denoiser, FSDPModule):
        if ranks.is_main:
            family.save(folder)
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    tensors = get_model_state_dict(family.denoiser, options=options)
    if ranks.is_main:
        with _wearing(family, _plain_copy(family.denoiser, tensors)):
            family.save(folder)


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
def _wearing(family: Family, denoiser: nn.Module) -> Iterator[None]:
    own, family.denoiser = family.denoiser, denoiser
    try:
        yield
    finally:
        family.denoiser = own
