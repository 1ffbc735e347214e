"""What judges adherence, as a command is told it: a recipe with `evaluate.adherence`, or the path of a detector or a vision-language model."""

from __future__ import annotations

from pathlib import Path

from ... import config, hub
from ...config_loading import load_run
from ...rewards.published import locate
from ...rewards.vlm_model import KINDS
from ...types import DirectAlignError
from .detector import MODELS
from .detector_files import model_type

RECIPES = (".yaml", ".yml")


def adherence_settings(text: str, option: str = "--adherence") -> config.Detector | config.Vlm:
    """The settings that `text` names; a bare path means its kind of model with all else as usual, and no CLIP for colours.

    Raises:
        DirectAlignError: a recipe without that section, no model there, or one of another kind.
    """
    if Path(text).suffix in RECIPES:
        found = load_run(text).evaluate.adherence
        if found is None:
            raise DirectAlignError(f"{option} {text}: has no evaluate.adherence; add it (name: detector or vlm, and path), or give the path of a model")
        return found
    folder = hub.download(text, ("config.json",), option) if hub.is_hub_id(text) else locate(text, option, ())
    told = model_type(folder, option)
    if told in KINDS:
        return config.Vlm(path=text)
    if told in MODELS:
        return config.Detector(path=text)
    raise DirectAlignError(f"{option} {text}: holds a model of type {told}; known are the detectors {', '.join(MODELS)}, and the VLMs {', '.join(KINDS)}")
