"""Files of a checkpoint: JSON, and safetensors of one variant; only headers are read.

Names: `model.safetensors`, `model.fp16.safetensors` (variant fp16),
`model.fp16-00001-of-00002.safetensors` (a shard of it), `model.safetensors.index.fp16.json` (which
tensor is in which shard).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel

from ..io import text
from ..io.tensors import check_safetensors
from ..types import DirectAlignError

SHARD = re.compile(r"-\d{5}-of-\d{5}")
STEMS = ("diffusion_pytorch_model", "model")
"""Names of weight files in diffusers and transformers."""
Entry = list[str | None] | list[int] | list[float] | str | float | bool | dict[str, Any] | None
INDEX = dict[str, Entry]
"""model_index.json: library and class of each part, null without it, and settings."""


class WeightMap(BaseModel):
    """Which tensor is in which shard."""

    weight_map: dict[str, str]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DirectAlignError for a missing or malformed file."""
    shape = INDEX if file.name == "model_index.json" else dict[str, Any]
    return text.read_json(file, "give a complete diffusers folder, or copy it again", shape)


def variant_of(name: str) -> str | None:
    """The variant in the name of a file, shard or index: fp16 for `model.fp16.safetensors`."""
    _, *words = SHARD.sub("", PurePosixPath(name).name).split(".")
    return ".".join(word for word in words if word not in ("safetensors", "index", "json")) or None


def chosen(names: Iterable[str], variant: str | None, where: Path | str) -> list[str]:
    """The weight files of `variant` among a part's files, sorted.

    Raises DirectAlignError, listing the existing variants, if there are none.
    """
    weights = sorted(
        name
        for name in names
        if name.endswith(".safetensors")
        and SHARD.sub("", PurePosixPath(name).name).split(".")[0] in STEMS
    )
    if not weights:
        raise DirectAlignError(
            f"{where}: no .safetensors file of weights: weights in other formats are not read, "
            "convert them first"
        )
    fitting = [name for name in weights if variant_of(name) == variant]
    if not fitting:
        there = sorted({variant_of(name) or "plain ones" for name in weights})
        remedy = (
            "leave model.variant out" if "plain ones" in there else f"set model.variant: {there[0]}"
        )
        wanted = f"{variant} weights" if variant else "plain weights"
        raise DirectAlignError(f"{where}: no {wanted}, there are {', '.join(there)}: {remedy}")
    return fitting


def variant_of_part(
    part: str, names: Mapping[str, Iterable[str]], variant: str | None
) -> str | None:
    """The variant to read of a part, from the files of all parts: plain weights, as diffusers does,
    if only other parts have `variant`."""
    having = {
        each for each, files in names.items() if variant in {variant_of(name) for name in files}
    }
    return None if having and part not in having else variant


def weights_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a part in `variant`.

    Raises DirectAlignError if there are none, and for a truncated file or a missing shard.
    """
    names = chosen((file.name for file in folder.iterdir()), variant, folder)
    files = [folder / name for name in names]
    indices = folder.glob("*.safetensors.index*.json")
    maps = [
        text.read_json(index, "copy the folder again", WeightMap)["weight_map"]
        for index in indices
        if variant_of(index.name) == variant
    ]
    listed = {folder / name for each in maps for name in each.values()}
    if outside := sorted(str(file) for file in listed if file.parent != folder):
        raise DirectAlignError(
            f"{folder}: its index names {outside[0]}, which is not in the folder"
        )
    for file in sorted({*files, *listed}):
        check_safetensors(file)
    if any(SHARD.search(file.name) for file in files) and not maps:
        raise DirectAlignError(
            f"{folder}: holds shards without their .safetensors.index.json: copy the folder again"
        )
    return files
