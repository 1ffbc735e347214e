"""Weights as their makers published them: found here or on the hub, read without running anything, put in place by name.

A `.safetensors` file or a `.pt`, `.pth`, `.bin` that holds tensors alone (`weights_only`); a file that pickles whole objects is
refused, never run. What is missing, left over, of another shape or cut short is one error that names the file and the tensor.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import hub
from ..types import DirectAlignError
from ..world.assets import resolve

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "module", "model")
"""Keys under which checkpoints keep their tensors beside the optimiser's."""


def is_weight_file(path: str) -> bool:
    """Whether `path` names a file of weights rather than a folder or a repository."""
    return Path(path).suffix in WEIGHT_FILES


def locate(path: str, key: str, patterns: Sequence[str]) -> Path:
    """The local file or folder of a reward's `path`: fetched from the hub (of a repository only what fits `patterns`), or `world:...`.

    Raises DirectAlignError, which blames the recipe's `key`: nothing there, no access, no network.
    """
    if hub.is_hub_file(path):
        return hub.download_file(path, key)
    found = hub.download(path, patterns, key) if hub.is_hub_id(path) and not is_weight_file(path) else resolve(path).expanduser()
    if not found.exists():
        what = "file; give the published weights, or owner/name/file on the hub" if is_weight_file(path) else "folder; give a transformers folder or a hub id"
        raise DirectAlignError(f"{key}: {path}: no such {what}")
    return found


def read_weights(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, out of the wrappings that trainers put around them.

    Raises DirectAlignError: cut short or not a file of weights, whole pickled objects, or nothing in it but other things.
    """
    try:
        read = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "global" in str(error).lower():
            raise DirectAlignError(
                f"{key}: {file}: holds pickled objects, which are never run; save its state_dict() as .safetensors where you trust it"
            ) from error
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error
    tensors = _unwrapped(read)
    if not tensors:
        raise DirectAlignError(f"{key}: {file}: holds no tensors by name; give the file of the model's weights")
    return tensors


CUT_SHORT = "not a complete file of weights (cut short, or of another kind): fetch it again"


def _unwrapped(read: Any) -> dict[str, Tensor]:
    while isinstance(read, Mapping):
        inner = next((read[name] for name in WRAPPERS if isinstance(read.get(name), Mapping)), None)
        if inner is None:
            return {str(name).removeprefix("module."): value for name, value in read.items() if isinstance(value, Tensor)}
        read = inner
    return {}


def fill(model: nn.Module, weights: Mapping[str, Tensor], file: Path, key: str, optional: Sequence[str] = ()) -> None:
    """Put `weights` into `model` in its own dtype; every name must be there and fit, but for those that begin as one of `optional` on either side.

    Raises DirectAlignError with the first tensor that is missing, unknown or of another shape, and how many more.
    """
    own, free = model.state_dict(), tuple(optional)
    wrong = {
        "lacks": [name for name in own if name not in weights and not name.startswith(free)],
        "has the unknown": [name for name in weights if name not in own and not name.startswith(free)],
        "has in another shape": [name for name in own if name in weights and own[name].shape != weights[name].shape],
    }
    for complaint, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DirectAlignError(f"{key}: {file}: {complaint} {names[0]}{more}; it must be the checkpoint of a {type(model).__name__} of this size")
    model.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
