"""Read the checkpoints of a run: their steps, records and tensors, whole or sharded.

`training.checkpoint` writes them. A tensor is stored as GROUP.NAME: `weights` and `ema` are those
of the denoiser's parameters, `method` those of the method's own copy, the other groups the
optimizer's.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..errors import DirectAlignError
from .atomic import damage
from .text import read_json

FORMAT = 2
"""Raised when the previous version's checkpoints can no longer be read."""
WEIGHTS, AVERAGE, METHOD = "weights", "ema", "method"


def path_of(folder: Path, step: int) -> Path:
    """`checkpoints/step-000040` for step 40."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The finished steps of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def all_of(folder: Path) -> list[Path]:
    """The published checkpoints, oldest first; copies under other names are none."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name))
    return sorted(found, key=step_of)


class _Data(BaseModel):
    fingerprint: str
    ranks: int
    global_batch_size: int


class _Record(BaseModel):
    format: int
    step: int
    config: dict[str, Any]
    architecture: str
    base: str | None = None
    data: _Data
    versions: dict[str, str]


def read_record(folder: Path) -> dict[str, Any]:
    """The checkpoint's `record.json`. Raises: DirectAlignError for content of another shape."""
    return read_json(folder / "record.json", f"remove {folder}", _Record)


def read_whole_record(path: Path) -> dict[str, Any]:
    """`read_record` of a checkpoint in whole and of this format. Raises: DirectAlignError."""
    damaged = damage(path)
    if damaged is not None:
        raise DirectAlignError(f"{path}: damaged ({damaged}); omit it, or copy it again")
    record = read_record(path)
    if record.get("format") != FORMAT:
        raise DirectAlignError(
            f"{path}: written by directalign {record['versions']['directalign']} in another "
            "format; read it with that version"
        )
    return record


def list_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Dtype and whole shape of every tensor in the folder, by GROUP.NAME."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: e for name, e in found.items() if isinstance(e, TensorStorageMetadata)}


def read_tensors(folder: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill the tensors of the groups, whole or sharded, from the folder.

    Raises: DirectAlignError if a tensor is missing or of another shape.
    """
    pairs = ((group, name) for group, tensors in groups.items() for name in tensors)
    wanted = {f"{group}.{name}": groups[group][name].detach() for group, name in pairs}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        raise DirectAlignError(
            f"{folder} does not fit this model: {first_failure(error)}; choose another --out"
        ) from error


def first_failure(error: CheckpointException) -> BaseException:
    return next(iter(error.failures.values()))[0]


def read_group(folder: Path, group: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a group of a checkpoint by name; None reads all."""
    stored = {
        name.removeprefix(f"{group}."): entry
        for name, entry in list_tensors(folder).items()
        if name.startswith(f"{group}.")
    }
    found = {
        name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype)
        for name in names or stored
    }
    read_tensors(folder, {group: found})
    return found
