"""Random low-rank updates for the layers of a network, and their `lora.safetensors`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from directalign.models.lora_files import DOWN, UP, LowRank

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
JOINT = (*QKV, "attn.to_out.0", *ADDED)


def random_updates(
    network: nn.Module, targets: Sequence[str], rank: int = 2, seed: int = 0
) -> dict[str, LowRank]:
    """For every linear layer whose name ends in one of the targets, as peft selects them."""
    ends = tuple(f".{each}" for each in targets)
    shapes = {
        name: (layer.out_features, layer.in_features)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(ends)
    }
    return updates_of_shape(shapes, rank, seed)


def updates_of_shape(
    shapes: Mapping[str, tuple[int, int]], rank: int = 2, seed: int = 0
) -> dict[str, LowRank]:
    """For layers of these (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    draw = {
        name: (torch.randn(rank, i, generator=generator), torch.randn(o, rank, generator=generator))
        for name, (o, i) in shapes.items()
    }
    return {name: LowRank(0.3 * down, 0.3 * up) for name, (down, up) in draw.items()}


def as_file(updates: Mapping[str, LowRank], part: str = "transformer") -> dict[str, Tensor]:
    """The tensors of lora.safetensors."""
    return {
        f"{part}.{layer}{end}": factor
        for layer, each in updates.items()
        for end, factor in ((DOWN, each.down), (UP, each.up))
    }


def write_lora(folder: Path, updates: Mapping[str, LowRank], part: str = "transformer") -> Path:
    """lora.safetensors in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(as_file(updates, part), folder / "lora.safetensors")
    return folder / "lora.safetensors"


def products(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """up · down by layer, of a diffusers file."""
    return {layer: tensors[layer + UP] @ tensors[layer + DOWN] for layer in _layers(tensors)}


def applied(tensors: Mapping[str, Tensor], probe: Tensor) -> dict[str, Tensor]:
    """up · down · probe by layer: the products where they are too large to be formed."""
    return {
        layer: tensors[layer + UP] @ (tensors[layer + DOWN] @ probe) for layer in _layers(tensors)
    }


def _layers(tensors: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]
