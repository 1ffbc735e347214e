"""What a LoRA file says of itself in its safetensors header: `modelspec.*` (the Stability AI model specification), kohya's `ss_*`, and ours.

ComfyUI, A1111 and Forge show the first, and A1111 sorts LoRAs by `ss_base_model_version`. No path of this machine is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import __version__, config
from ..models.weight_files import check_safetensors
from ..types import DirectAlignError
from .finished_run import Base, Finished

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LowRank:
    """An update up · down of a layer's weight: `down` (rank, in, ...), `up` (out, rank, ...); convolutions have two sides more."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return len(self.down)


def read_updates(file: Path, part: str) -> dict[str, LowRank]:
    """{layer of the denoiser: its update}, by name, from a run's `lora.safetensors`.

    Args:
        part: the denoiser's name in its pipeline, with which every key begins.
    Raises:
        DirectAlignError: no such file, a torn one, or one that holds anything but pairs of factors.
    """
    check_safetensors(file)
    tensors = load_file(file)
    layers = sorted({key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)})
    pairs = {key for layer in layers for key in (layer + DOWN, layer + UP)}
    odd = sorted(pairs ^ tensors.keys()) or [
        key for key in sorted(pairs) if not key.startswith(f"{part}.")
    ]
    if odd or not layers:
        raise DirectAlignError(
            f"{file}: not a LoRA of a {part}: {odd[0] if odd else 'it is empty'}: give a run that directalign train finished"
        )
    return {
        layer.removeprefix(f"{part}."): LowRank(tensors[layer + DOWN], tensors[layer + UP])
        for layer in layers
    }


def fuse(parts: Mapping[int, LowRank], shares: tuple[int, ...]) -> LowRank:
    """One update of a layer that stacks `len(shares)` layers, of heights in these proportions; `parts` are those that are trained, by place.

    The rows of a part that is not trained are 0.
    """
    heights = {len(update.up) // shares[place] for place, update in parts.items()}
    if len(heights) != 1:
        raise DirectAlignError(
            f"layers of heights {sorted(len(each.up) for each in parts.values())} do not fuse in proportions {shares}: use --format diffusers"
        )
    ends = torch.tensor(shares).cumsum(0) * heights.pop()
    present = [parts[place] for place in sorted(parts)]
    up = present[0].up.new_zeros(int(ends[-1]), sum(each.rank for each in present))
    column = 0
    for place in sorted(parts):
        update, end = parts[place], int(ends[place])
        up[end - len(update.up) : end, column : column + update.rank] = update.up
        column += update.rank
    return LowRank(torch.cat([each.down for each in present]), up)


@dataclass(frozen=True)
class Place:
    """Layer `name`; of its rows, stacked in proportions `shares`, those of number `part`. `height` is that of one share, where readers know no other."""

    name: str
    part: int = 0
    shares: tuple[int, ...] = (1,)
    height: int | None = None


Blocks = Mapping[str, tuple[str, Mapping[str, Place]]]
"""Name of a list of blocks -> the list's other name, and the place of each layer inside a block."""


def _fused(
    name: str, layers: Sequence[str], shares: tuple[int, ...] = (1, 1, 1), height: int | None = None
) -> dict[str, Place]:
    return {layer: Place(name, part, shares, height) for part, layer in enumerate(layers)}


def _single(names: Mapping[str, str]) -> dict[str, Place]:
    return {layer: Place(name) for layer, name in names.items()}


QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
JOINT_ATTENTION = {
    **_fused("img_attn.qkv", QKV),
    **_fused("txt_attn.qkv", ADDED_QKV),
    **_single({"attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj"}),
}
FLUX_DOUBLE = JOINT_ATTENTION | _single(
    {
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
    }
)
FLUX_SINGLE = _fused("linear1", (*QKV, "proj_mlp"), (1, 1, 1, 4), height=3072) | _single(
    {"proj_out": "linear2", "norm.linear": "modulation.lin"}
)
FLUX: Blocks = {
    "transformer_blocks": ("double_blocks", FLUX_DOUBLE),
    "single_transformer_blocks": ("single_blocks", FLUX_SINGLE),
}

FLUX2_DOUBLE = JOINT_ATTENTION | _single(
    {
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
    }
)
FLUX2_SINGLE = _single({"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"})
FLUX2: Blocks = {
    "transformer_blocks": ("double_blocks", FLUX2_DOUBLE),
    "single_transformer_blocks": ("single_blocks", FLUX2_SINGLE),
}

SD3_JOINT = {
    **_fused("x_block.attn.qkv", QKV),
    **_fused("context_block.attn.qkv", ADDED_QKV),
    **_fused("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    **_single(
        {
            "attn.to_out.0": "x_block.attn.proj",
            "attn.to_add_out": "context_block.attn.proj",
            "attn2.to_out.0": "x_block.attn2.proj",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        }
    ),
}
SD3: Blocks = {"transformer_blocks": ("joint_blocks", SD3_JOINT)}

Z_IMAGE_LAYER = {
    **_fused("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v")),
    **_single(
        {
            "attention.to_out.0": "attention.out",
            **{f"feed_forward.w{n}": f"feed_forward.w{n}" for n in (1, 2, 3)},
        }
    ),
}
Z_IMAGE: Blocks = {
    name: (name, Z_IMAGE_LAYER) for name in ("layers", "noise_refiner", "context_refiner")
}

LAYERS_PER_BLOCK = 2
"""Of SDXL's UNet; its finetunes and distilled forms keep it, and the numbers of `input_blocks` and `output_blocks` count by it."""


def in_blocks(blocks: Blocks) -> Callable[[str], Place | None]:
    """The place of a layer by a table of blocks, None for one that the table lacks."""

    def place(layer: str) -> Place | None:
        found = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
        if found is None or found[1] not in blocks:
            return None
        name, places = blocks[found[1]]
        inside = places.get(found[3])
        return inside and replace(inside, name=f"{name}.{found[2]}.{inside.name}")

    return place


def unchanged(pattern: str) -> Callable[[str], Place | None]:
    """Layers that match keep their names, the others have no place."""
    return lambda layer: Place(layer) if re.match(pattern, layer) else None


def sdxl(layer: str) -> Place | None:
    """SDXL's attention blocks under the numbers of Stability AI's UNet, which counts through all resolutions."""
    found = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.attentions\.(\d+)\.(.+)", layer
    )
    if found is None:
        return None
    kind, block, number, inside = found[1], int(found[2] or 0), int(found[3]), found[4]
    count = (LAYERS_PER_BLOCK + 1) * block + number
    head = {
        "down_blocks": f"input_blocks.{count + 1}.1",
        "up_blocks": f"output_blocks.{count}.1",
        "mid_block": "middle_block.1",
    }[kind]
    return Place(f"{head}.{inside}")


def place_of(layer: str, find: Callable[[str], Place | None], layout: str) -> Place:
    """What `find` says of a layer; none is an error that names the layer and the layout."""
    place = find(layer)
    if place is None:
        raise DirectAlignError(
            f"{layer} has no name in the {layout} layout: use --format diffusers, or train without it (model.lora.targets)"
        )
    return place


LoraFormat = Literal["diffusers", "comfyui", "kohya"]


@dataclass(frozen=True)
class Layout:
    """How a file names an update: where a layer goes, what stands before its name, whether dots become underscores, the names of the factors."""

    place: Callable[[str], Place | None]
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


def _kohya_layout(place: Callable[[str], Place | None]) -> Layout:
    return Layout(place, "lora_unet_", flat=True, down="lora_down", up="lora_up", alpha=True)


ANY = unchanged("")
UNET_ATTENTION = unchanged(r"(down_blocks|up_blocks)\.\d+\.attentions\.|mid_block\.attentions\.")
QWEN_BLOCKS = unchanged(r"transformer_blocks\.\d+\.")
KOHYA = {
    "flux": _kohya_layout(in_blocks(FLUX)),
    "flux2_klein": _kohya_layout(in_blocks(FLUX2)),
    "sd3": _kohya_layout(in_blocks(SD3)),
    "sd": _kohya_layout(UNET_ATTENTION),
    "sdxl": _kohya_layout(sdxl),
    "qwen_image": _kohya_layout(QWEN_BLOCKS),
    "z_image": _kohya_layout(in_blocks(Z_IMAGE)),
}
COMFYUI = {
    "flux": Layout(in_blocks(FLUX), "diffusion_model.", down="lora_down", up="lora_up", alpha=True),
    "flux2_klein": Layout(in_blocks(FLUX2), "diffusion_model."),
    "sd3": Layout(ANY, "transformer."),
    "sd": KOHYA["sd"],
    "sdxl": KOHYA["sdxl"],
    "qwen_image": Layout(QWEN_BLOCKS, "diffusion_model."),
    "z_image": Layout(
        unchanged(r"(layers|noise_refiner|context_refiner)\.\d+\."), "diffusion_model."
    ),
}


def layout_of(model: str, form: LoraFormat) -> Layout:
    """How `form` names a family's updates; a pair that nothing is known of is an error."""
    if form == "diffusers":
        return Layout(ANY, "unet." if model in ("sd", "sdxl") else "transformer.")
    layouts = {"comfyui": COMFYUI, "kohya": KOHYA}[form]
    if model not in layouts:
        raise DirectAlignError(
            f"--format {form}: no {form} layout is known for model.architecture {model} ({', '.join(layouts)} have one): use --format diffusers"
        )
    return layouts[model]


def converted(updates: Mapping[str, LowRank], model: str, form: LoraFormat) -> dict[str, Tensor]:
    """The tensors of a file in another layout, fused where the layout has one layer for several; products are those of the run.

    Raises:
        DirectAlignError: no such layout for this model, or a layer that has no name in it or is smaller than its readers expect.
    """
    layout = layout_of(model, form)
    groups: dict[tuple[str, tuple[int, ...]], dict[int, LowRank]] = {}
    for layer, update in updates.items():
        place = place_of(layer, layout.place, f"{form} {model}")
        if place.height not in (None, len(update.up) // place.shares[place.part]):
            raise DirectAlignError(
                f"{layer}: readers of the {form} layout take {place.name} at {model}'s full width alone: use --format diffusers"
            )
        groups.setdefault((place.name, place.shares), {})[place.part] = update
    tensors: dict[str, Tensor] = {}
    for (name, shares), parts in groups.items():
        tensors |= layout.tensors(name, parts[0] if len(shares) == 1 else fuse(parts, shares))
    return tensors


ARCHITECTURES = {
    "flux": "flux-1",
    "flux2_klein": "flux-2-klein",
    "sd3": "stable-diffusion-3",
    "sdxl": "stable-diffusion-xl-v1-base",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
}
SD_BY_WIDTH = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2-512"}
"""SD 1.x and 2.x differ in the width of the text they attend to."""
KOHYA_VERSIONS = {"flux": "flux1", "sd3": "sd3", "sdxl": "sdxl_base_v1-0"}
KOHYA_MODULES = {"flux": "networks.lora_flux", "sd3": "networks.lora_sd3"}


def recipe_hash(finished: Finished) -> str:
    """SHA-256 of the run's run.yaml."""
    return hashlib.sha256((finished.folder / "run.yaml").read_bytes()).hexdigest()


def metadata(
    finished: Finished, base: Base, form: LoraFormat, updates: Mapping[str, LowRank]
) -> dict[str, str]:
    """Everything for the header; values are text."""
    architecture = architecture_of(finished.run.model.architecture, base, updates)
    extra = _kohya_header(finished.run, base, architecture) if form != "diffusers" else {}
    return {
        "format": "pt",
        **_modelspec(finished, base, form, architecture),
        **extra,
        **_own(finished, base),
    }


def architecture_of(model: str, base: Base, updates: Mapping[str, LowRank]) -> str:
    """The specification's name of an architecture."""
    if model == "sd":
        widths = {
            each.down.shape[1] for layer, each in updates.items() if layer.endswith("attn2.to_k")
        }
        return SD_BY_WIDTH.get(min(widths, default=0), "stable-diffusion")
    return (
        "flux-1-dev"
        if base.hub_id == "black-forest-labs/FLUX.1-dev"
        else ARCHITECTURES.get(model, model)
    )


def _modelspec(
    finished: Finished, base: Base, form: LoraFormat, architecture: str
) -> dict[str, str]:
    run, written = (
        finished.run,
        datetime.fromtimestamp(finished.weights.stat().st_mtime, timezone.utc),
    )
    rollout = run.rollout
    told = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers"
        if form == "diffusers"
        else "ComfyUI"
        if form == "comfyui"
        else "sd-scripts",
        "title": run.name,
        "resolution": f"{rollout.width}x{rollout.height}"
        if rollout.width and rollout.height
        else None,
        "description": f"LoRA for {base.name}, aligned to a reward model with directalign ({run.method.name})",
        "date": written.isoformat(timespec="seconds"),
        "license": base.licence and base.licence.title,
        "usage_hint": "no trigger words",
    }
    return {f"modelspec.{key}": value for key, value in told.items() if value}


def _kohya_header(run: config.RunConfig, base: Base, architecture: str) -> dict[str, str]:
    """The keys of sd-scripts that readers look at, as far as they have a meaning here."""
    model, rank = run.model.architecture, str(run.model.lora.rank)
    versions = {"stable-diffusion-v1": "sd_v1", "stable-diffusion-v2-512": "sd_v2"} | {
        ARCHITECTURES[name]: version for name, version in KOHYA_VERSIONS.items()
    }
    version = KOHYA_VERSIONS.get(model) or versions.get(architecture)
    return {
        **({"ss_base_model_version": version} if version else {}),
        "ss_v2": str(architecture.startswith("stable-diffusion-v2")),
        "ss_network_module": KOHYA_MODULES.get(model, "networks.lora"),
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": run.name,
        "ss_sd_model_name": base.name,
        "ss_seed": str(run.seed),
        "ss_steps": str(run.train.num_steps),
        "ss_learning_rate": str(run.train.learning_rate),
        "ss_optimizer": run.train.optimizer,
        "ss_max_grad_norm": str(run.train.max_grad_norm),
    }


def _own(finished: Finished, base: Base) -> dict[str, str]:
    commit = finished.records.summary.get("commit")
    return {
        "directalign.version": __version__,
        "directalign.base_model": base.name,
        "directalign.recipe_sha256": recipe_hash(finished),
        "directalign.trigger_words": "none",
        **({"directalign.commit": str(commit)} if commit else {}),
    }
