"""Whether guidance and steps of a run fit its model: errors, and warnings where it may be meant."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import config
from ..models import model_class
from ..toyworld.worlds import world_of
from ..types import DirectAlignError

DISTILLED = re.compile(r"turbo|schnell|lightning|lcm|hyper|flash|sprint|distill", re.IGNORECASE)
"""Names of models and LoRAs that are distilled to a few steps without guidance."""
FEW_STEPS = 12
NAMED_STEPS = re.compile(r"(?<!\d)(\d{1,2})[ _-]?steps?(?![a-z])", re.IGNORECASE)
"""Names that state the number: sdxl_lightning_4step, Hyper-FLUX.1-dev-8steps-lora."""


def check_guidance(run: config.RunConfig, model: Any) -> None:
    """Raise DirectAlignError for guidance that the model has no input or no second pass for."""
    for key, scale in _scales(run).items():
        if scale != 1.0 and getattr(model, "is_distilled", False):
            raise DirectAlignError(
                f"{key}: {scale:g}, and this model is distilled, without a second pass: set it to "
                "1, or give a base model in model.path"
            )
    embeds = getattr(model, "embeds_guidance", False)
    guidance = {"rollout": run.rollout.embedded_guidance}
    if isinstance(run.method, config.SRPOConfig):
        guidance["method"] = run.method.embedded_guidance
    for section, value in guidance.items():
        key = f"{section}.embedded_guidance"
        if embeds and value is None:
            raise DirectAlignError(f"{key}: missing; this model needs it as an input, often 3.5")
        if not embeds and value is not None:
            raise DirectAlignError(
                f"{key}: {value}, and this model has no input for it; leave it out (set it to null "
                "over a preset), or use cfg_scale"
            )


def guidance_warnings(run: config.RunConfig, model: Any) -> list[str]:
    """Guidance, steps and shift that are unusual for the model."""
    paths = (run.model.path, run.model.lora.init)
    names = [Path(path).name for path in paths if path is not None]
    name = next((each for each in names if DISTILLED.search(each)), None)
    if name is not None:
        found = [
            f"{key}: {scale:g}, and {name} is by its name distilled, to be sampled without a "
            "second pass: set it to 1"
            for key, scale in _scales(run).items()
            if scale != 1.0
        ]
        return found + _few_step_warnings(run, name, "is by its name distilled to a few")
    takes_few = getattr(model, "is_distilled", False) and not getattr(
        model, "embeds_guidance", False
    )
    if takes_few:  # FLUX.2 klein, Krea 2 Turbo; FLUX.2 dev is distilled from guidance alone
        return _few_step_warnings(run, names[0], "says that it is distilled to a few")
    if world_of(run.model.path):
        return []
    usual = getattr(model, "usual_cfg", 1.0)
    is_distilled = getattr(model, "is_distilled", False)
    if run.rollout.cfg_scale != 1.0 or usual == 1.0 or is_distilled:
        return []
    return [
        f"rollout.cfg_scale: 1: rollouts and samples are unguided, and {model.title} is usually "
        f"sampled with {usual:g}: set it, unless yours is distilled"
    ]


def _few_step_warnings(run: config.RunConfig, name: str, why: str) -> list[str]:
    """Steps and a shift that are not those of a few-step model."""
    rollout, found, stated = run.rollout, list[str](), NAMED_STEPS.search(name)
    for key in ("num_inference_steps", "training_steps"):
        steps = getattr(rollout, key)
        if steps is None or (steps <= FEW_STEPS if stated is None else steps == int(stated[1])):
            continue
        own = "what it is sampled with, often 4 to 8" if stated is None else stated[1]
        found.append(f"rollout.{key}: {steps}, and {name} {why}: set {own}")
    if rollout.shift is not None:
        found.append(
            f"rollout.shift: {rollout.shift:g}, and {name} {why} levels, which its scheduler "
            "states: remove rollout.shift, unless the model's authors name it"
        )
    return found


def _scales(run: config.RunConfig) -> dict[str, float]:
    return {
        "rollout.cfg_scale": run.rollout.cfg_scale,
        "method.cfg_scale": getattr(run.method, "cfg_scale", 1.0),
    }


def usual(architecture: str, name: str, index: Mapping[str, Any]) -> dict[str, float]:
    """The key of a rollout that guides a model as usual; none where its pipeline's `index` or
    the `name` of its checkpoint says that it is distilled."""
    scale = getattr(model_class(architecture), "usual_cfg", 1.0)
    passes = scale != 1.0 and not (index.get("is_distilled") or DISTILLED.search(name))
    return {"cfg_scale": scale} if passes else {}
