"""What judges adherence, as a command is told it: a recipe, its section in YAML, or the path of a detector or a vision-language model."""

from __future__ import annotations

import json
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ... import config
from ...config.load import is_recipe, load_run
from ...io import hub
from ...rewards.qwen_vl import KINDS
from ...rewards.weights import locate
from ...types import DirectAlignError
from .detector import MODELS, model_type


def adherence_settings(text: str, option: str = "--adherence") -> config.AdherenceConfig:
    """The settings that `text` names: a recipe's `evaluate.adherence`, {name: detector, path: ...} itself, or a model's folder or hub id.

    A bare path means its kind of model with all else as usual, and no CLIP for colours.

    Raises:
        DirectAlignError: a recipe without that section, a section that is none, no model there, or one of another kind.
    """
    if text.lstrip().startswith("{"):
        return _section(text, option)
    if is_recipe(text):
        found = load_run(text).evaluate.adherence
        if found is None:
            raise DirectAlignError(
                f"{option} {text}: has no evaluate.adherence; add it (name: detector or vlm, and path), or give the path of a model"
            )
        return found
    folder = (
        hub.download(text, ("config.json",), option)
        if hub.is_hub_id(text)
        else locate(text, option, ())
    )
    told = model_type(folder, option)
    if told in KINDS:
        return config.QwenVLConfig(path=text)
    if told in MODELS:
        return config.DetectorConfig(path=text)
    raise DirectAlignError(
        f"{option} {text}: holds a model of type {told}; known are the detectors {', '.join(MODELS)}, and the VLMs {', '.join(KINDS)}"
    )


def _section(text: str, option: str) -> config.AdherenceConfig:
    try:
        read: Any = yaml.safe_load(text)
        return TypeAdapter(config.AdherenceConfig).validate_json(json.dumps(read))
    except yaml.YAMLError as error:
        raise DirectAlignError(
            f"{option} {text!r:.80}: not YAML ({str(error).splitlines()[0]})"
        ) from error
    except (ValidationError, TypeError) as error:
        first = (
            error.errors()[0]
            if isinstance(error, ValidationError)
            else {"loc": (), "msg": str(error)}
        )
        place = ".".join(map(str, first["loc"][1:])) or "section"
        raise DirectAlignError(
            f"{option}: {place}: {first['msg']}; write {{name: detector, path: ...}} or {{name: vlm, path: ...}}"
        ) from error
