"""The plain diffusers call that makes an image again, in a process that never imports this package.

Written beside every image. The pipeline's own scheduler gives the grid when the recipe leaves `rollout.shift` out;
otherwise the scheduler is replaced by one with that shift, under which the pipeline's default grid is the recipe's. Equal
to 1e-4 in float32; a bfloat16 pipeline draws its noise in bfloat16, so there the picture is near, not equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import config
from ..interfaces import Family
from ..types import DirectAlignError
from ..world import assets
from .generate import image_size

PIPELINES = {"flux": "FluxPipeline", "sd": "StableDiffusionPipeline"}


def diffusers_call(family: Family, run: config.Run, prompt: str, seed: int, trained: Path | None) -> dict[str, Any]:
    """Everything the call needs, and the same as lines of Python under "code"; `trained` is the run folder, None for the base model."""
    call = {
        "pipeline": PIPELINES[run.model.family],
        "path": str(assets.resolve(run.model.path)),
        "weights": str(trained) if trained else None,
        "scheduler": _scheduler(run),
        "arguments": {"prompt": prompt, **_arguments(family, run)},
        "seed": seed,
    }
    return {**call, "code": _code(call, run)}


def _arguments(family: Family, run: config.Run) -> dict[str, Any]:
    height, width = image_size(family, run.rollout)
    shared = {"height": height, "width": width, "num_inference_steps": run.rollout.num_sampling_steps}
    if run.model.family == "sd":
        return {**shared, "guidance_scale": run.rollout.cfg_scale}
    if run.rollout.cfg_scale != 1.0:
        shared |= {"negative_prompt": "", "true_cfg_scale": run.rollout.cfg_scale}
    length = getattr(family, "max_sequence_length")  # noqa: B009 (FLUX alone has it; the contract does not)
    return {**shared, "guidance_scale": run.rollout.embedded_guidance or 1.0, "max_sequence_length": length}


def _scheduler(run: config.Run) -> dict[str, Any]:
    """Which scheduler the pipeline must have, and what of its config is changed."""
    if run.model.family == "sd":
        if run.rollout.shift is not None:
            raise DirectAlignError(f"rollout.shift {run.rollout.shift} shifts a flow; an SD model has its own timesteps: leave it out")
        return {"class": "DDIMScheduler", "changes": {"set_alpha_to_one": True}}
    changes = {} if run.rollout.shift is None else {"use_dynamic_shifting": False, "shift": run.rollout.shift}
    return {"class": "FlowMatchEulerDiscreteScheduler", "changes": changes}


def _code(call: dict[str, Any], run: config.Run) -> str:
    scheduler, changes = call["scheduler"]["class"], call["scheduler"]["changes"]
    extra = "".join(f", {name}={value!r}" for name, value in changes.items())
    arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
    dtype = "" if run.model.dtype == "float32" else f", torch_dtype=torch.{run.model.dtype}"
    lines = [
        "import torch",
        f"from diffusers import {call['pipeline']}, {scheduler}",
        f"pipe = {call['pipeline']}.from_pretrained({call['path']!r}{dtype})",
        *_load_lines(call, run),
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{extra})",
        f"image = pipe({arguments}, generator=torch.Generator().manual_seed({call['seed']})).images[0]",
    ]
    return "\n".join(lines)


def _load_lines(call: dict[str, Any], run: config.Run) -> list[str]:
    if call["weights"] is None:
        return []
    if run.model.tune == "lora":
        return [f"pipe.load_lora_weights({call['weights']!r}, weight_name='lora.safetensors')"]
    part = {"flux": "transformer", "sd": "unet"}[run.model.family]
    return [f"pipe.{part} = type(pipe.{part}).from_pretrained({call['weights']!r}, subfolder={part!r})"]
