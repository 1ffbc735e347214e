"""The plain diffusers call that makes an image again, in a process that never imports this package.

Written beside every image. The pipeline's own scheduler gives the grid when the recipe leaves `rollout.shift` out;
otherwise the scheduler is replaced by one with that shift, under which the pipeline's default grid is the recipe's. Equal
to 1e-4 in float32; a bfloat16 pipeline draws its noise in bfloat16, so there the picture is near, not equal. A base that
the run holds in 8 or 4 bits is opened whole, and the picture is near as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import config
from ..interfaces import Family
from ..models import single_file
from ..toyworld import assets
from ..types import DirectAlignError
from .generate import image_size


def diffusers_call(family: Family, run: config.Run, prompt: str, seed: int, trained: Path | None) -> dict[str, Any]:
    """Everything the call needs, and the same as lines of Python under "code"; `trained` is the run folder, None for the base model."""
    call = {
        "pipeline": family.pipeline,
        "path": str(assets.resolve(run.model.path)),
        "weights": str(trained) if trained else None,
        "scheduler": _scheduler(family, run),
        "arguments": {"prompt": prompt, **_arguments(family, run.rollout)},
        "seed": seed,
    }
    return {**call, "code": _code(call, family, run)}


def _arguments(family: Family, rollout: config.Rollout) -> dict[str, Any]:
    height, width = image_size(family, rollout)
    return {"height": height, "width": width, "num_inference_steps": rollout.num_sampling_steps, **family.call_arguments(rollout)}


def _scheduler(family: Family, run: config.Run) -> dict[str, Any]:
    """Which scheduler the pipeline must have, and what of its config is changed."""
    if family.path == "vp":
        if run.rollout.shift is not None:
            raise DirectAlignError(f"rollout.shift {run.rollout.shift} shifts a flow; an SD model has its own timesteps: leave it out")
        # a folder saved with another sampler may say nothing of clipping, and DDIM's default is to clip
        return {"class": "DDIMScheduler", "changes": {"set_alpha_to_one": True, "clip_sample": False}}
    changes = {} if run.rollout.shift is None else {"use_dynamic_shifting": False, "shift": run.rollout.shift}
    return {"class": "FlowMatchEulerDiscreteScheduler", "changes": changes}


def _code(call: dict[str, Any], family: Family, run: config.Run) -> str:
    scheduler, changes = call["scheduler"]["class"], call["scheduler"]["changes"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
    classes, opened = _opened(call["pipeline"], run.model)
    lines = [
        "import torch",
        f"from diffusers import {', '.join([*classes, scheduler])}",
        f"pipe = {opened}",
        *_load_lines(call, family.part, run),
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{_extra(changes)})",
        f"image = pipe({arguments}, generator=torch.Generator().manual_seed({call['seed']})).images[0]",
    ]
    return "\n".join(lines)


def _opened(pipeline: str, model: config.Model) -> tuple[list[str], str]:
    """The expression that opens the base model, and the classes in it; what a single file holds takes the place of its components' parts."""
    dtype = "" if model.dtype == "float32" else f", torch_dtype=torch.{model.dtype}"
    chosen = _extra({name: value for name, value in {"revision": model.revision, "variant": model.variant}.items() if value is not None})
    if model.components is None:
        return [pipeline], f"{pipeline}.from_pretrained({str(assets.resolve(model.path))!r}{chosen}{dtype})"
    file, folder = str(Path(model.path).expanduser()), str(assets.resolve(model.components))
    held = single_file.contents(Path(file))
    if "text_encoder" in held.parts:
        return [pipeline], f"{pipeline}.from_single_file({file!r}, config={folder!r}{dtype})"
    kinds = {part: "AutoencoderKL" if part == "vae" else held.layout.class_name for part in held.parts}
    own = "".join(f", {part}={kind}.from_single_file({file!r}, config={folder!r}, subfolder={part!r}{dtype})" for part, kind in kinds.items())
    return [pipeline, *kinds.values()], f"{pipeline}.from_pretrained({folder!r}{chosen}{own}{dtype})"


def _extra(arguments: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def _load_lines(call: dict[str, Any], part: str, run: config.Run) -> list[str]:
    if call["weights"] is None:
        return []
    if run.model.tune == "lora":
        return [f"pipe.load_lora_weights({call['weights']!r}, weight_name='lora.safetensors')"]
    return [f"pipe.{part} = type(pipe.{part}).from_pretrained({call['weights']!r}, subfolder={part!r})"]
