"""Blocks that are all alike need not all be traced: two and three of a kind are, and what the third adds is what each further one adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .live import Piece
from .weightless import Part

FEWEST = 2
"""Blocks of a kind in the smallest network that is traced; with one, its first and last would be the same."""
COUNTS = {
    "FluxTransformer2DModel": ("num_layers", "num_single_layers"),
    "Flux2Transformer2DModel": ("num_layers", "num_single_layers"),
    "QwenImageTransformer2DModel": ("num_layers",),
    "ZImageTransformer2DModel": ("n_layers",),
    "T5EncoderModel": ("num_layers",),
    "Qwen3ForCausalLM": ("num_hidden_layers",),
}
"""Settings that count blocks of one kind."""

Counts = dict[str, int]
"""Blocks by kind."""


def by_blocks(part: Part, trace: Callable[[Part], Piece]) -> Piece:
    """`trace(part)`, exactly, from the smallest networks that tell it."""
    counts = block_counts(part)
    fewest = {kind: min(count, FEWEST) for kind, count in counts.items()}
    if all(count <= FEWEST + 1 for count in counts.values()):
        return trace(part)
    least = whole = trace(with_blocks(part, fewest))
    for kind, count in counts.items():
        if count > FEWEST:
            one_more = trace(with_blocks(part, fewest | {kind: FEWEST + 1}))
            whole = whole + (one_more - least).times(count - FEWEST)
    return whole


def block_counts(part: Part) -> Counts:
    """How many blocks of each kind a network has; none where they all differ."""
    config = part.config
    if part.class_name == "SD3Transformer2DModel":  # those with a second attention come first
        dual = len(config.get("dual_attention_layers", ()))
        return {"dual": dual, "plain": config["num_layers"] - dual}
    if part.class_name == "UNet2DConditionModel":
        return {"deepest": max(_depths(config))}
    return {key: config[key] for key in COUNTS.get(part.class_name, ())}


def with_blocks(part: Part, counts: Counts) -> Part:
    """The same network with as many blocks of each kind."""
    if part.class_name == "SD3Transformer2DModel":
        return part.changed(
            num_layers=counts["dual"] + counts["plain"],
            dual_attention_layers=list(range(counts["dual"])),
        )
    if part.class_name == "UNet2DConditionModel":
        most = counts["deepest"]
        return part.changed(
            transformer_layers_per_block=[
                min(depth, most) if depth < FEWEST + 1 else most for depth in _depths(part.config)
            ]
        )
    kinds = part.config.get("layer_types")  # transformers may list what each layer is
    return (
        part.changed(**counts)
        if kinds is None
        else part.changed(**counts, layer_types=kinds[: counts["num_hidden_layers"]])
    )


def _depths(config: dict[str, Any]) -> list[int]:
    """Transformer blocks in each level of a UNet: those of SDXL's deepest level are alike, and many."""
    depths = config.get("transformer_layers_per_block", 1)
    return depths if isinstance(depths, list) else [depths] * len(config["block_out_channels"])
