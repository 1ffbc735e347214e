"""The model card's lines on use: diffusers, ComfyUI, A1111 and Forge, as far as the exported form serves them."""

from __future__ import annotations

from pathlib import Path

from .base import Base
from .finished import Finished

WEB_UI = {"sd": "A1111 or Forge", "sdxl": "A1111 or Forge", "flux": "Forge"}
"""Which of the two web interfaces runs a family."""


def how_to_load(finished: Finished, base: Base, form: str, target: Path) -> str:
    """Markdown for this export; `target` holds its files."""
    family = finished.run.model.family
    if form == "folder":
        return _python(finished, [f"pipe = {finished.pipeline}.from_pretrained(FOLDER, torch_dtype=torch.bfloat16)"])
    file = next(target.glob("*.safetensors")).name
    lines = []
    if not (form == "kohya" and family == "sd3"):
        lines.append("diffusers:\n\n" + _python(finished, _load(finished, base, file)))
    if form in ("comfyui", "kohya"):
        lines.append(f"ComfyUI: put `{file}` into `models/loras` and add a *LoraLoaderModelOnly* node, strength 1.")
    if family in WEB_UI and (form == "kohya" or (form == "comfyui" and family != "flux")):
        stem = file.removesuffix(".safetensors")
        lines.append(f"{WEB_UI[family]}: put `{file}` into `models/Lora` and write `<lora:{stem}:1>` in the prompt.")
    if form == "diffusers":
        lines.append("For ComfyUI, A1111 and Forge export the run again with `--format comfyui` or `--format kohya`.")
    return "\n\n".join(lines)


def _load(finished: Finished, base: Base, file: str) -> list[str]:
    place = base.hub_id or f"<folder of {base.name}>"
    return [
        f"pipe = {finished.pipeline}.from_pretrained({place!r}, torch_dtype=torch.bfloat16)",
        f"pipe.load_lora_weights(FOLDER, weight_name={file!r})",
    ]


def _python(finished: Finished, load: list[str]) -> str:
    rollout = finished.run.rollout
    guidance = f"embedded guidance {rollout.embedded_guidance:g}" if rollout.embedded_guidance is not None else f"cfg scale {rollout.cfg_scale:g}"
    code = [
        "import torch",
        f"from diffusers import {finished.pipeline}",
        "",
        "FOLDER = '.'  # this folder, or owner/name once it is on the Hub",
        *load,
        f"image = pipe('a prompt', num_inference_steps={rollout.num_sampling_steps}).images[0]",
    ]
    told = f"Training sampled with {rollout.num_sampling_steps} steps and {guidance}; other settings work as with the base, but were not trained on."
    return "```python\n" + "\n".join(code) + "\n```\n\n" + told
