"""Named tensors on the disk, all as safetensors, written whole or in shards and read back by any number of processes.

Shards are written by torch.distributed.checkpoint, each rank its own file with the places of its pieces in the header; its
usual format would keep a pickle beside them. The same reader takes files of either kind, and only what this rank holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from ..types import DirectAlignError
from .distributed import Ranks

SUFFIX = ".safetensors"


def write(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> None:
    """Every tensor of every group, under GROUP.NAME: rank 0 writes a file per group, or each rank its shards."""
    named = {group: {f"{group}.{name}": tensor.detach() for name, tensor in tensors.items()} for group, tensors in groups.items()}
    together = {name: tensor for tensors in named.values() for name, tensor in tensors.items()}
    if any(isinstance(tensor, DTensor) for tensor in together.values()):
        dcp.save(together, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    elif ranks.is_main:
        for group, tensors in named.items():
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / f"{group}{SUFFIX}")


def listed(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Dtype and whole shape of every tensor in the folder, by GROUP.NAME."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def read(folder: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill the tensors of the groups, whole or sharded, with what the folder has under their names."""
    wanted = {f"{group}.{name}": tensor.detach() for group, tensors in groups.items() for name, tensor in tensors.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        raise DirectAlignError(f"{folder} does not fit this model: {first_failure(error)}; choose another --out") from error


def first_failure(error: CheckpointException) -> BaseException:
    """The error on the first rank that had one."""
    return next(iter(error.failures.values()))[0]
