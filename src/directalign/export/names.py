"""What a layer of a diffusers denoiser is called in the code its weights were published with.

FLUX and Stable Diffusion 3 keep q, k and v (and in FLUX's single blocks the MLP too) in one layer, which `Place` says by part and
shares. Layers outside the repeated blocks have no place here: no reader of these layouts takes all of them, so they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..types import DirectAlignError


@dataclass(frozen=True)
class Place:
    """Layer `name`; of its rows, stacked in proportions `shares`, those of number `part`. `height` is that of one share, where readers know no other."""

    name: str
    part: int = 0
    shares: tuple[int, ...] = (1,)
    height: int | None = None


Blocks = Mapping[str, tuple[str, Mapping[str, Place]]]
"""Name of a list of blocks -> the list's other name, and the place of each layer inside a block."""


def _fused(name: str, layers: Sequence[str], shares: tuple[int, ...] = (1, 1, 1), height: int | None = None) -> dict[str, Place]:
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
FLUX_SINGLE = _fused("linear1", (*QKV, "proj_mlp"), (1, 1, 1, 4), height=3072) | _single({"proj_out": "linear2", "norm.linear": "modulation.lin"})
FLUX: Blocks = {"transformer_blocks": ("double_blocks", FLUX_DOUBLE), "single_transformer_blocks": ("single_blocks", FLUX_SINGLE)}

FLUX2_DOUBLE = JOINT_ATTENTION | _single(
    {"ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2", "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2"}
)
FLUX2_SINGLE = _single({"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"})
FLUX2: Blocks = {"transformer_blocks": ("double_blocks", FLUX2_DOUBLE), "single_transformer_blocks": ("single_blocks", FLUX2_SINGLE)}

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
    **_single({"attention.to_out.0": "attention.out", **{f"feed_forward.w{n}": f"feed_forward.w{n}" for n in (1, 2, 3)}}),
}
Z_IMAGE: Blocks = {name: (name, Z_IMAGE_LAYER) for name in ("layers", "noise_refiner", "context_refiner")}

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
    found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.attentions\.(\d+)\.(.+)", layer)
    if found is None:
        return None
    kind, block, number, inside = found[1], int(found[2] or 0), int(found[3]), found[4]
    count = (LAYERS_PER_BLOCK + 1) * block + number
    head = {"down_blocks": f"input_blocks.{count + 1}.1", "up_blocks": f"output_blocks.{count}.1", "mid_block": "middle_block.1"}[kind]
    return Place(f"{head}.{inside}")


def place_of(layer: str, find: Callable[[str], Place | None], layout: str) -> Place:
    """What `find` says of a layer; none is an error that names the layer and the layout."""
    place = find(layer)
    if place is None:
        raise DirectAlignError(f"{layer} has no name in the {layout} layout: use --format diffusers, or train without it (model.lora.targets)")
    return place
