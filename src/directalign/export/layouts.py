"""LoRA files as ComfyUI and kohya's sd-scripts name them (A1111, Forge and musubi-tuner read kohya's names too).

kohya: `lora_unet_` and the published layer name with underscores, `.lora_down`, `.lora_up` and `.alpha`. ComfyUI takes several forms; of those it
reads we write the one that diffusers reads back too:

    flux            diffusion_model. + published names, lora_down/lora_up, any ComfyUI since FLUX came out
    flux2_klein     the same with lora_A/lora_B, by which diffusers tells FLUX.2 files apart
    qwen_image      diffusion_model. + diffusers' names, which are the published ones
    z_image         diffusion_model. + diffusers' names: ComfyUI puts q, k and v into its fused layer itself
    sd3             the diffusers file as it is: ComfyUI reads `transformer.` for it, and diffusers no other form
    sd, sdxl        the kohya file as it is: ComfyUI never read lora_A/lora_B under diffusers' UNet names

The factors are those of the run, so alpha is the rank throughout (`families.tuning` folds the trained scale into the second one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..types import DirectAlignError
from . import names
from .low_rank import LowRank, fuse

LoraFormat = Literal["diffusers", "comfyui", "kohya"]


@dataclass(frozen=True)
class Layout:
    """How a file names an update: where a layer goes, what stands before its name, whether dots become underscores, the names of the factors."""

    place: Callable[[str], names.Place | None]
    prefix: str
    flat: bool = False
    down: str = "lora_A"
    up: str = "lora_B"
    alpha: bool = False

    def tensors(self, name: str, update: LowRank) -> dict[str, Tensor]:
        """One layer's entries."""
        key = self.prefix + (name.replace(".", "_") if self.flat else name)
        entries = {f"{key}.{self.down}.weight": update.down, f"{key}.{self.up}.weight": update.up}
        return entries | ({f"{key}.alpha": torch.tensor(float(update.rank))} if self.alpha else {})


def _kohya(place: Callable[[str], names.Place | None]) -> Layout:
    return Layout(place, "lora_unet_", flat=True, down="lora_down", up="lora_up", alpha=True)


ANY = names.unchanged("")
UNET_ATTENTION = names.unchanged(r"(down_blocks|up_blocks)\.\d+\.attentions\.|mid_block\.attentions\.")
QWEN_BLOCKS = names.unchanged(r"transformer_blocks\.\d+\.")
KOHYA = {
    "flux": _kohya(names.in_blocks(names.FLUX)),
    "flux2_klein": _kohya(names.in_blocks(names.FLUX2)),
    "sd3": _kohya(names.in_blocks(names.SD3)),
    "sd": _kohya(UNET_ATTENTION),
    "sdxl": _kohya(names.sdxl),
    "qwen_image": _kohya(QWEN_BLOCKS),
    "z_image": _kohya(names.in_blocks(names.Z_IMAGE)),
}
COMFYUI = {
    "flux": Layout(names.in_blocks(names.FLUX), "diffusion_model.", down="lora_down", up="lora_up", alpha=True),
    "flux2_klein": Layout(names.in_blocks(names.FLUX2), "diffusion_model."),
    "sd3": Layout(ANY, "transformer."),
    "sd": KOHYA["sd"],
    "sdxl": KOHYA["sdxl"],
    "qwen_image": Layout(QWEN_BLOCKS, "diffusion_model."),
    "z_image": Layout(names.unchanged(r"(layers|noise_refiner|context_refiner)\.\d+\."), "diffusion_model."),
}


def layout_of(family: str, form: LoraFormat) -> Layout:
    """How `form` names a family's updates; a pair that nothing is known of is an error."""
    if form == "diffusers":
        return Layout(ANY, "unet." if family in ("sd", "sdxl") else "transformer.")
    layouts = {"comfyui": COMFYUI, "kohya": KOHYA}[form]
    if family not in layouts:
        raise DirectAlignError(f"--format {form}: no {form} layout is known for model.family {family} ({', '.join(layouts)} have one): use --format diffusers")
    return layouts[family]


def converted(updates: Mapping[str, LowRank], family: str, form: LoraFormat) -> dict[str, Tensor]:
    """The tensors of a file in another layout, fused where the layout has one layer for several; products are those of the run.

    Raises:
        DirectAlignError: no such layout for this family, or a layer that has no name in it or is smaller than its readers expect.
    """
    layout = layout_of(family, form)
    groups: dict[tuple[str, tuple[int, ...]], dict[int, LowRank]] = {}
    for layer, update in updates.items():
        place = names.place_of(layer, layout.place, f"{form} {family}")
        if place.height not in (None, len(update.up) // place.shares[place.part]):
            raise DirectAlignError(f"{layer}: readers of the {form} layout take {place.name} at {family}'s full width alone: use --format diffusers")
        groups.setdefault((place.name, place.shares), {})[place.part] = update
    tensors: dict[str, Tensor] = {}
    for (name, shares), parts in groups.items():
        tensors |= layout.tensors(name, parts[0] if len(shares) == 1 else fuse(parts, shares))
    return tensors
