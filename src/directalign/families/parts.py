"""Reads the parts of a diffusers folder, each with the class that its model_index.json names, and trusts none of it.

Whatever is missing, truncated, of another architecture or only half there ends in one line that names the file. Weights
come from safetensors alone; nothing is unpickled and nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, cast

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from .. import config
from ..types import DirectAlignError
from .source import Source

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)


def read_json(file: FilePath) -> dict[str, Any]:
    """The object in a JSON file; a missing or malformed file is an error that names it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DirectAlignError(f"{file}: no such file: give a complete diffusers folder in model.path") from None
    except (OSError, ValueError) as error:
        raise DirectAlignError(f"{file}: not readable as JSON ({error}): copy the folder again") from None
    if not isinstance(content, dict):
        raise DirectAlignError(f"{file}: holds a {type(content).__name__}, not an object: copy the folder again")
    return content


def dtypes_of(parts: Mapping[str, type | None], model: config.Model, denoiser: str) -> dict[str, torch.dtype]:
    """The dtype of each model among the parts: the recipe's, and for a denoiser whose weights are all trained theirs."""
    trained = model.trained_dtype if model.tune == "full" else model.dtype
    return {name: getattr(torch, trained if name == denoiser else model.dtype) for name in parts}


def load_parts(
    source: Source,
    pipeline: str,
    parts: Mapping[str, type | None],
    dtypes: Mapping[str, torch.dtype],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The named parts of a diffusers folder; models are frozen and in eval mode.

    `pipeline` is the class name that model_index.json must carry. `parts` maps each part to the class it must be of, None
    for any. `dtypes` gives the dtype of each model, `options` what else its from_pretrained is told.
    Errors: DirectAlignError naming the file, what it holds, the remedy.
    """
    folder, extra = source.folder, options or {}
    for library in LIBRARIES.values():
        library.utils.logging.disable_progress_bar()
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != pipeline:
        raise DirectAlignError(f"{folder / 'model_index.json'}: holds a {index.get('_class_name')}, not a {pipeline}: set model.family to match model.path")
    return {name: _load_part(folder / name, _part_class(folder, index, name, wanted), dtypes.get(name), extra.get(name, {})) for name, wanted in parts.items()}


def _part_class(folder: FilePath, index: Mapping[str, Any], name: str, wanted: type | None) -> type:
    library, class_name = index.get(name) or (None, None)
    found = getattr(LIBRARIES.get(str(library)), str(class_name), None)
    if found is None:
        raise DirectAlignError(f"{folder / 'model_index.json'}: {name} is {class_name} of {library}, which is not known here: give a complete folder")
    if wanted is not None and not issubclass(found, wanted):
        raise DirectAlignError(f"{folder / 'model_index.json'}: {name} is a {class_name}, a {wanted.__name__} is needed: give another model.path")
    return found


def _load_part(folder: FilePath, part: Any, dtype: torch.dtype | None, extra: Mapping[str, Any]) -> Any:
    if not folder.is_dir():
        raise DirectAlignError(f"{folder}: no such folder: give a complete diffusers folder in model.path")
    try:
        return _load_model(folder, part, dtype or torch.float32, extra) if issubclass(part, nn.Module) else _load_other(folder, part)
    except DirectAlignError:
        raise
    except UNREADABLE as error:
        raise DirectAlignError(f"{folder}: not readable as a {part.__name__} ({_brief(error)}): its files must belong together, copy them again") from error


def _load_other(folder: FilePath, part: Any) -> Any:
    """A tokenizer or scheduler; transformers would make an empty tokenizer where its files are missing."""
    vocabulary: dict[str, str] = getattr(part, "vocab_files_names", {})
    others = [name for key, name in vocabulary.items() if key != "tokenizer_file"]
    whole = (folder / "tokenizer.json").is_file() or (others and all((folder / name).is_file() for name in others))
    if vocabulary and not whole:
        raise DirectAlignError(f"{folder}: lacks {', '.join(vocabulary.values())}: copy the tokenizer's files again")
    return part.from_pretrained(folder, local_files_only=True)


def _load_model(folder: FilePath, part: Any, dtype: torch.dtype, extra: Mapping[str, Any]) -> nn.Module:
    read_json(folder / "config.json")
    weights_files(folder)
    name = "torch_dtype" if issubclass(part, diffusers.ModelMixin) else "dtype"
    options: dict[str, Any] = {name: dtype, "local_files_only": True, "use_safetensors": True, "output_loading_info": True, **extra}
    model, info = cast(tuple[nn.Module, Any], part.from_pretrained(folder, **options))
    lacking = sorted(str(key) for key in info["missing_keys"])
    if lacking:
        raise DirectAlignError(f"{folder}: the weights lack {len(lacking)} tensors of a {part.__name__} ({lacking[0]}, ...): copy the folder again")
    return model.requires_grad_(False).eval()


def weights_files(folder: FilePath) -> list[FilePath]:
    """The safetensors files of a part, each with a whole header and the length it promises; none, or a torn one, is an error."""
    files = sorted(folder.glob("*.safetensors"))
    promised = {name for index in folder.glob("*.safetensors.index.json") for name in read_json(index).get("weight_map", {}).values()}
    for file in [*files, *(folder / name for name in sorted(promised))]:
        check_safetensors(file)
    if not files:
        raise DirectAlignError(f"{folder}: no .safetensors file: weights in other formats are not read, convert them first")
    return files


def check_safetensors(file: FilePath) -> None:
    """Reads the header alone: a file that is missing, torn or of another format is an error that names it."""
    if not file.is_file():
        raise DirectAlignError(f"{file}: no such file: copy the folder again")
    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except (OSError, SafetensorError) as error:
        raise DirectAlignError(f"{file}: truncated or not a safetensors file ({_brief(error)}): copy it again") from None


def _brief(error: Exception) -> str:
    """The first sentence of a library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:200]
