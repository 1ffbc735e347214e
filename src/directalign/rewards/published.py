"""Weights as their makers published them: found here or on the hub, read without running anything, put in place by name.

A `.safetensors` file or a `.pt`, `.pth`, `.bin` that holds tensors alone (`weights_only`); a file that pickles whole objects is
refused, never run. What is missing, left over, of another shape or cut short is one error that names the file and the tensor.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from struct import error as StructError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import hub
from ..types import DirectAlignError
from ..world.assets import resolve

Shapes = Mapping[str, Sequence[int]]
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "module", "model")
"""Keys under which checkpoints keep their tensors beside the optimiser's."""


def is_weight_file(path: str) -> bool:
    """Whether `path` names a file of weights rather than a folder or a repository."""
    return Path(path).suffix in WEIGHT_FILES


def on_the_hub(path: str) -> tuple[str, str]:
    """Repository and file of owner/name/file."""
    match = hub.HUB_FILE.fullmatch(path)
    assert match is not None, path
    return match[1], match[2]


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
    if found.is_file() and not is_weight_file(path):
        raise DirectAlignError(f"{key}: {path}: is no file of weights ({', '.join(WEIGHT_FILES)}); give one, a transformers folder or a hub id")
    return found


def check_published(path: str, key: str, online: bool = False) -> None:
    """Whether `locate` would find a file or folder, without fetching it: here, and `online` also by the hub's list of a repository's files."""
    if hub.is_hub_file(path):
        repo, name = on_the_hub(path)
        there = hub.listing(repo, key) if online else None
        if there is not None and name not in there:
            raise DirectAlignError(f"{key}: {path}: {repo} has no file {name}; give the name of its file of weights")
    elif is_weight_file(path) or not hub.is_hub_id(path):
        locate(path, key, ())


def read_weights(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, out of the wrappings that trainers put around them; read from the disk where they are used.

    Raises DirectAlignError: cut short or not a file of weights, whole pickled objects, or nothing in it but other things.
    """
    if _is_program(file):
        raise DirectAlignError(f"{key}: {file}: {PROGRAM}")
    try:
        read = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "global" in str(error).lower():
            raise DirectAlignError(
                f"{key}: {file}: holds pickled objects, which are never run; save its state_dict() as .safetensors where you trust it"
            ) from error
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error
    except UNREADABLE as error:
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error
    tensors = _unwrapped(read)
    if not tensors:
        raise DirectAlignError(f"{key}: {file}: holds no tensors by name; give the file of the model's weights")
    return tensors


def read_shapes(file: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file, without reading the numbers. Errors as `read_weights`."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_weights(file, key).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error


UNREADABLE = (SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, BadZipFile, StructError)
PROGRAM = "holds a program (TorchScript), which is never run; save its state_dict() as .safetensors where you trust it, or take a folder of these weights"
CUT_SHORT = "not a complete file of weights (cut short, or of another kind): fetch it again"


def _is_program(file: Path) -> bool:
    if not is_zipfile(file):
        return False
    with ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unwrapped(read: Any) -> dict[str, Tensor]:
    while isinstance(read, Mapping):
        inner = next((read[name] for name in WRAPPERS if isinstance(read.get(name), Mapping)), None)
        if inner is None:
            return {str(name).removeprefix("module."): value for name, value in read.items() if isinstance(value, Tensor)}
        read = inner
    return {}


def fill(model: nn.Module, weights: Mapping[str, Tensor], file: Path, key: str, optional: Sequence[str] = ()) -> None:
    """Put `weights` into `model` in its own dtype; every name must be there and fit, but for those that begin as one of `optional` on either side.

    Raises DirectAlignError as `check_tensors`.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors(own, {name: tuple(tensor.shape) for name, tensor in weights.items()}, file, key, type(model).__name__, optional)
    model.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def check_tensors(wanted: Shapes, held: Shapes, file: Path, key: str, kind: str, optional: Sequence[str] = ()) -> None:
    """Raises DirectAlignError with the first tensor of a file that is missing, unknown or of another shape than a `kind` wants, and how many more."""
    free = tuple(optional)
    wrong = {
        "lacks": [name for name in wanted if name not in held and not name.startswith(free)],
        "has the unknown": [name for name in held if name not in wanted and not name.startswith(free)],
        "has in another shape": [name for name in wanted if name in held and tuple(wanted[name]) != tuple(held[name])],
    }
    for complaint, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DirectAlignError(f"{key}: {file}: {complaint} {names[0]}{more}; it must be the checkpoint of a {kind} of this size")
