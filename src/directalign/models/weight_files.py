"""Files of a checkpoint: JSON, and safetensors in their plain or another variant, whole or in shards. Headers are read, weights are not.

A name says what it is: `model.safetensors`, `model.fp16.safetensors` (variant fp16), `model.fp16-00001-of-00002.safetensors` (a shard of
it), `model.safetensors.index.fp16.json` (which tensor lies in which shard).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from ..types import DirectAlignError

SHARD = re.compile(r"-\d{5}-of-\d{5}")
STEMS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call the weights of a part."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; a missing or malformed file is an error that names it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DirectAlignError(
            f"{file}: no such file: give a complete diffusers folder in model.path"
        ) from None
    except (OSError, ValueError) as error:
        raise DirectAlignError(
            f"{file}: not readable as JSON ({error}): copy the folder again"
        ) from None
    if not isinstance(content, dict):
        raise DirectAlignError(
            f"{file}: holds a {type(content).__name__}, not an object: copy the folder again"
        )
    return content


def variant_of(name: str) -> str | None:
    """fp16 of `model.fp16.safetensors`, of its shards and of their index; None of the plain ones."""
    _, *words = SHARD.sub("", PurePosixPath(name).name).split(".")
    return ".".join(word for word in words if word not in ("safetensors", "index", "json")) or None


def chosen(names: Iterable[str], variant: str | None, where: Path | str) -> list[str]:
    """The weight files of a part in the wanted variant, sorted, among the names of its files; none is an error that names what there is."""
    weights = sorted(
        name for name in names if name.endswith(".safetensors") and _stem(name) in STEMS
    )
    if not weights:
        raise DirectAlignError(
            f"{where}: no .safetensors file of weights: weights in other formats are not read, convert them first"
        )
    fitting = [name for name in weights if variant_of(name) == variant]
    if not fitting:
        there = sorted({variant_of(name) or "plain ones" for name in weights})
        remedy = (
            "leave model.variant out" if "plain ones" in there else f"set model.variant: {there[0]}"
        )
        raise DirectAlignError(
            f"{where}: no {f'{variant} weights' if variant else 'plain weights'}, there are {', '.join(there)}: {remedy}"
        )
    return fitting


def weights_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a part, each with a whole header and the length it promises.

    None in this variant, a torn one, or a shard that the index names and the folder lacks, is an error that names it.
    """
    files = [
        folder / name for name in chosen((file.name for file in folder.iterdir()), variant, folder)
    ]
    indices = [
        file
        for file in folder.glob("*.safetensors.index*.json")
        if variant_of(file.name) == variant
    ]
    promised = {
        folder / name
        for index in indices
        for name in read_json(index).get("weight_map", {}).values()
    }
    for file in sorted({*files, *promised}):
        check_safetensors(file)
    if any(SHARD.search(file.name) for file in files) and not indices:
        raise DirectAlignError(
            f"{folder}: holds shards without their .safetensors.index.json: copy the folder again"
        )
    return files


def check_safetensors(file: Path) -> None:
    """Reads the header alone: a file that is missing, torn or of another format is an error that names it."""
    tensor_shapes(file)


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor of a safetensors file, from its header; a missing or torn one is an error that names it."""
    if not file.is_file():
        raise DirectAlignError(f"{file}: no such file: copy it again")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise DirectAlignError(
            f"{file}: truncated or not a safetensors file ({brief(error)}): copy it again"
        ) from None


def brief(error: Exception) -> str:
    """The first sentence of a library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:200]


def _stem(name: str) -> str:
    return SHARD.sub("", PurePosixPath(name).name).split(".")[0]
