"""Settings of an adherence judge from the command line: a recipe, its section in YAML, or the path
of a model."""

from __future__ import annotations

import yaml

from ... import config
from ...config.load import is_recipe, load_run, parse_section
from ...io import hub
from ...rewards.qwen_vl import KINDS as VLMS
from ...rewards.weights import locate
from ...types import DirectAlignError
from .detector import KINDS as DETECTORS
from .detector import model_type


def adherence_settings(text: str, option: str = "--adherence") -> config.AdherenceConfig:
    """Of a recipe's `evaluate.adherence`, {name: detector, path: ...} itself, or a model's folder
    or hub id.

    A bare path gets the defaults of its kind of model, and no CLIP for colours.

    Raises:
        DirectAlignError: a recipe without that section, an invalid section, no model, or one of
            another kind.
    """
    if text.lstrip().startswith("{"):
        try:
            section = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = str(error).splitlines()[0]
            raise DirectAlignError(f"{option} {text!r:.80}: not YAML ({problem})") from error
        remedy = "write {name: detector, path: ...} or {name: vlm, path: ...}"
        return parse_section(config.AdherenceConfig, section, option, remedy)
    if is_recipe(text):
        found = load_run(text).evaluate.adherence
        if found is None:
            raise DirectAlignError(
                f"{option} {text}: has no evaluate.adherence; "
                "add it (name: detector or vlm, and path), or give the path of a model"
            )
        return found
    is_remote = hub.is_hub_id(text)
    folder = hub.download(text, ("config.json",), option) if is_remote else locate(text, option, ())
    kind = model_type(folder, option)
    if kind in VLMS:
        return config.QwenVLConfig(path=text)
    if kind in DETECTORS:
        return config.DetectorConfig(path=text)
    raise DirectAlignError(
        f"{option} {text}: holds a model of type {kind}; known are the detectors "
        f"{', '.join(DETECTORS)}, and the VLMs {', '.join(VLMS)}"
    )
