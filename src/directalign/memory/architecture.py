"""What a recipe's models are made of, without weights and without a network connection.

A local folder's own configs come first, then the hub's cache, then the published models' configs that this package brings
(families/known). A hub id that is neither cached nor known is taken for its family's usual model, and a warning says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from .. import config
from ..io import hub
from ..models import model_class, single_file
from ..models.weight_files import read_json, tensor_shapes, weights_files
from ..toyworld import assets
from ..types import DirectAlignError
from .weightless import Part, shapes

KNOWN = Path(__file__).parents[1] / "models" / "known"
REFERENCES = {
    "flux": "flux_1_dev",
    "flux2_klein": "flux_2_klein_4b",
    "sd3": "sd3_5_large",
    "sd": "sd1_5",
    "sdxl": "sdxl_base",
    "qwen_image": "qwen_image",
    "z_image": "z_image",
}
"""For each family the file of the model that an unknown hub id is taken for."""

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Architecture:
    """Networks by their names in a pipeline. `folder` is where their files lie, None where nothing does yet.

    `stored` are the tensors of the parts whose weights are on this machine, from their headers; `state` says in a few words
    how much of it is here; `doubts` are warnings.
    """

    name: str
    parts: Mapping[str, Part]
    folder: Path | None = None
    stored: Mapping[str, Shapes] = field(default_factory=dict)
    state: str = ""
    doubts: tuple[str, ...] = ()

    def shapes(self, part: str) -> Shapes:
        """Shape of every tensor of a part: as stored, else as its config says."""
        return self.stored.get(part) or shapes(self.parts[part])

    def count(self, part: str) -> int:
        """Numbers in all tensors of a part together."""
        return sum(math.prod(shape) for shape in self.shapes(part).values())


def model_architecture(model: config.ModelConfig) -> Architecture:
    """The networks of a text-to-image model.

    Raises:
        DirectAlignError: a folder that is missing, torn, without safetensors, or of another architecture than the family.
    """
    if not model.path.endswith(".safetensors"):
        return _pipeline(model.path, "model.path", model)
    held = single_file.contents(Path(model.path).expanduser())
    if model.components is None:
        remedy = "give the diffusers folder or hub id of that architecture that brings its configs and tokenizers"
        raise DirectAlignError(
            f"model.components: missing; {model.path} holds {held.layout.name} alone: {remedy}"
        )
    rest = _pipeline(model.components, "model.components", model, set(held.parts))
    return Architecture(
        model.path, rest.parts, rest.folder, {**rest.stored, **held.parts}, rest.state, rest.doubts
    )


def _pipeline(
    path: str, key: str, model: config.ModelConfig, held: set[str] = frozenset()
) -> Architecture:  # pyright: ignore[reportArgumentType]
    """A pipeline from a path or hub id; weights of the parts `held` in a single file are not looked for."""
    folder = local_folder(path, model.revision, "model_index.json")
    if folder is None:
        return _known(path, key, model.architecture)
    if not folder.is_dir():
        raise DirectAlignError(
            f"{key}: {path}: no such folder; give a diffusers folder, a hub id (owner/name), or world:flux, world:sd, world:sd_v"
        )
    family = model_class(model.architecture)
    index, wanted = read_json(folder / "model_index.json"), family.pipeline
    if index.get("_class_name") != wanted:
        found = index.get("_class_name")
        raise DirectAlignError(
            f"{key}: {folder} holds a {found}, and model.architecture: {model.architecture} needs a {wanted}; change one of the two"
        )
    named = [
        name
        for name in (family.part, "vae", *family.text_parts)
        if index.get(name, [None])[0] is not None
    ]
    parts = {
        name: Part.of(index[name][1], read_json(folder / name / "config.json")) for name in named
    }
    cached = hub.is_hub_id(path)
    lacking = [
        name
        for name in named
        if name not in held and cached and not any((folder / name).glob("*.safetensors"))
    ]
    stored = {
        name: _stored(folder / name, model.variant)
        for name in named
        if name not in held and name not in lacking
    }
    state = f"weights of {', '.join(lacking)} not downloaded yet" if lacking else ""
    return Architecture(path, parts, folder, stored, state)


def local_folder(path: str, revision: str | None, file: str) -> Path | None:
    """A folder on this machine: as given, of the embedded world, or the hub's cache; None for a hub id without `file` there."""
    if path.startswith("world:"):
        return assets.resolve(path)
    if not hub.is_hub_id(path):
        return Path(path).expanduser()
    found = try_to_load_from_cache(path, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _stored(folder: Path, variant: str | None) -> Shapes:
    return {
        name: tuple(shape)
        for file in weights_files(folder, variant)
        for name, shape in tensor_shapes(file).items()
    }


def _known(path: str, key: str, family: str) -> Architecture:
    """A published model by its hub id, else the family's usual one under a warning."""
    name = next((name for name, told in known().items() if path in told["hub_ids"]), None)
    told = known()[name or REFERENCES[family]]
    parts = {
        part: Part.of(settings["_class_name"], settings) for part, settings in told["parts"].items()
    }
    if name is not None and family != told["architecture"]:
        raise DirectAlignError(
            f"{key}: {path} is a model of family {told['family']}, and model.architecture is {family}; change one of the two"
        )
    doubt = f"{key}: {path} is not downloaded yet and not known here: figures are those of {told['hub_ids'][0]}"
    return Architecture(path, parts, state="not downloaded yet", doubts=() if name else (doubt,))


@cache
def known() -> dict[str, dict[str, Any]]:
    """The published models' configs by file name; see families/known/README.md."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(KNOWN.glob("*.json"))
    }
