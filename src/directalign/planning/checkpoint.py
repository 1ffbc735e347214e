"""What is wrong with a checkpoint, from its configs, tokenizers and the headers of its weight files; and what it needs of this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from torch import nn

from .. import config
from ..evaluation.scores import key_of
from ..io import hub
from ..memory.architecture import Architecture
from ..memory.weightless import Part, built
from ..models import model_class
from ..models.attention import check_attention, set_attention
from ..models.checkpoint_source import Source, open_source
from ..models.components import check_parts, load_parts
from ..models.quantization import check_quantization
from ..models.sd3 import T5_PARTS
from ..models.weight_files import read_json
from ..rewards import check_reward
from ..types import DirectAlignError


def fetch(run: config.RunConfig, online: bool) -> None:
    """What model and reward are, without their weights: from the hub when `online`, else only whether local paths can be read at all."""
    if online or not any(
        path is not None and hub.is_hub_id(path) for path in (run.model.path, run.model.components)
    ):
        open_source(run.model, weights=False)
    if online:
        check_reward(run.reward, online=True)
        for label, held_out in run.evaluate.rewards.items():
            check_reward(held_out, key_of(label), online=True)


def check_checkpoint(model: config.ModelConfig, found: Architecture) -> None:
    """Every part is there, whole, and of the family: what loading would refuse is refused now. Nothing is known of what is not downloaded."""
    if found.folder is None:
        return
    family: Any = model_class(model.architecture)
    index = read_json(found.folder / "model_index.json")
    wanted = {
        name: kind
        for name, kind in family.parts.items()
        if name not in T5_PARTS or (index.get(name) or [None])[0] is not None
    }
    if hub.is_hub_id(model.components or model.path) and not all(
        (found.folder / name).is_dir() for name in wanted
    ):
        return  # the cache holds a few files of it, for some other program
    source = Source(
        model.path,
        found.folder,
        Path(model.path).expanduser() if model.components is not None else None,
        model.variant,
    )
    classes = check_parts(source, family.pipeline, wanted, weights=not found.state)
    light = {
        name: wanted[name] for name, kind in classes.items() if not issubclass(kind, nn.Module)
    }
    networks = {
        name: _weightless(found.folder / name, kind)
        for name, kind in classes.items()
        if name not in light
    }
    family.check(found.folder, load_parts(source, family.pipeline, light, {}) | networks)


def _weightless(folder: Path, kind: type) -> Any:
    """A network as its config describes it, with the settings that its class fills in; of transformers' the config alone."""
    part = Part.of(kind.__name__, read_json(folder / "config.json"))
    if issubclass(kind, transformers.PreTrainedModel):
        settings: Any = kind.config_class
        return SimpleNamespace(config=settings.from_dict(part.config))
    return built(part)


def check_here(model: config.ModelConfig, found: Architecture, online: bool) -> list[str]:
    """Attention kernel and rounding can be used on this machine. What is only missing here is a warning, and an error where training is about to start."""
    network = (
        None
        if model.attention is None
        else built(found.parts[model_class(model.architecture).part])
    )
    if model.attention is not None:
        check_attention(network, model.attention)
    try:
        if model.quantization is not None:
            check_quantization(model.quantization)
        if model.attention is not None and (
            online or "hub" not in model.attention
        ):  # those are downloaded
            set_attention(network, model.attention)
    except DirectAlignError as error:
        if online:
            raise
        return [str(error)]
    return []
