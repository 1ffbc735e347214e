"""Which files of a run are on this machine, and how much the others are to download."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from .. import config
from ..evaluation.scores import held_out_key
from ..io import hub
from ..models.checkpoint_source import separate_parts
from ..rewards.mixture import key_of
from .memory import Estimate
from .meta_models import MetaModel, ModelFolder

WEIGHTS = "*.safetensors", "*.bin", "*.pt"
STORED = 2
"""Bytes per weight in published files of diffusion models."""


@dataclass(frozen=True)
class ModelFiles:
    """Files behind one key of the recipe; `missing` bytes are to be downloaded, about."""

    key: str
    path: str
    is_here: bool
    missing: int = 0


def files_of(
    run: config.RunConfig, folder: ModelFolder, model: MetaModel, memory: Estimate
) -> list[ModelFiles]:
    """The files of the model and of every reward that has some."""
    found = list(_of_model(run.model, folder, model))
    sizes = {row.part: max(row.sizes.values(), default=0) for row in memory.rows}
    for key, label, settings in _rewards(run):
        path = getattr(settings, "path", None)
        if isinstance(path, str) and path not in [each.path for each in found]:
            here = _is_here(path)
            found.append(ModelFiles(key, path, here, 0 if here else sizes.get(label, 0)))
    return found


def _of_model(
    settings: config.ModelConfig, folder: ModelFolder, model: MetaModel
) -> Iterator[ModelFiles]:
    """The model's files, and those of each folder or repository that `model.args` names."""
    path = settings.path if settings.components is None or not folder.state else settings.components
    lacking = [name for name in model.parts if not folder.missing or name in folder.missing]
    named = {key: each for key, each in separate_parts(settings).items() if key in settings.args}
    elsewhere = [part for parts in named.values() for part in parts]
    places = {"model": (path, [name for name in model.parts if name not in elsewhere])}
    for key, parts in named.items():
        places[f"model.args.{key}"] = (settings.args[key], list(parts))
    for key, (place, parts) in places.items():
        names = [name for name in lacking if name in parts] if folder.state else []
        missing = sum(STORED * model.count(name) for name in names)
        yield ModelFiles(key, place, not names, missing)


def _rewards(run: config.RunConfig) -> Iterator[tuple[str, str, Any]]:
    """(key, row of the memory table, settings) of every reward."""
    if isinstance(run.reward, config.MixtureConfig):
        for index, member in enumerate(run.reward.members):
            yield key_of(index), f"reward {member.label}", member.reward
    else:
        yield "reward", "reward", run.reward
    for label, settings in run.evaluate.rewards.items():
        yield held_out_key(label), f"held out {label}", settings


def _is_here(path: str) -> bool:
    """Whether the weights are on this machine; local paths have been checked before."""
    if hub.is_hub_file(path):
        return isinstance(try_to_load_from_cache(*hub.on_the_hub(path)), str)
    if not hub.is_hub_id(path):
        return True
    config_file = try_to_load_from_cache(path, "config.json")
    if not isinstance(config_file, str):
        return False
    return any(file for kind in WEIGHTS for file in Path(config_file).parent.glob(kind))
