"""How much memory a run will take, told from the model folder's config files and safetensors headers: no weight is read.

Weights, gradients and optimiser states are counted exactly. Activations are an allowance: numbers per layer, token or
feature-map cell that were measured on diffusers' own networks by summing what autograd keeps for the backward pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from . import config
from .families.loading import FAMILIES
from .families.parts import read_json, weights_files
from .world.assets import resolve

Shapes = Mapping[str, tuple[int, ...]]

DENOISER = {"flux": "transformer", "sd": "unet"}
FROZEN = {"flux": ("text_encoder", "text_encoder_2", "vae"), "sd": ("text_encoder", "vae")}
BYTES = {"float32": 4, "bfloat16": 2}
ADAMW_BYTES = 8
"""Two float32 averages for each trained number."""

KEPT_PER_TOKEN = {"full": 23, "lora": 15}
"""Numbers that autograd keeps per token, layer and unit of width of a FLUX transformer."""
KEPT_PER_CELL = {"full": 41, "lora": 35}
"""Numbers that autograd keeps per layer and feature-map cell of a UNet."""
KEPT_PER_CELL_VAE = 9
"""The same for the VAE decoder, whose weights are frozen."""


@dataclass(frozen=True)
class Item:
    """One line of the estimate, in bytes; an allowance is a figure that the run may undercut or exceed."""

    part: str
    size: int
    note: str
    is_allowance: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run needs on the device that it would train on. `trained` counts the trained parameters."""

    items: tuple[Item, ...]
    trained: int
    device: str
    capacity: int

    @property
    def total(self) -> int:
        """Bytes, allowances included."""
        return sum(item.size for item in self.items)

    @property
    def counted(self) -> int:
        """Bytes that are certain: weights, gradients, optimiser states."""
        return sum(item.size for item in self.items if not item.is_allowance)


def estimate(run: config.Run) -> Estimate:
    """Memory on the training device. Raises DirectAlignError for a folder that is missing, torn or has no safetensors."""
    folder = resolve(run.model.path)
    denoiser = shapes(folder / DENOISER[run.model.family])
    full = run.model.tune == "full"
    trained = count(denoiser) if full else lora_parameters(denoiser, run.model.lora, FAMILIES[run.model.family].lora_targets)
    items = [*_frozen(run, folder, denoiser), *_trained(run, trained), *_activations(run, folder)]
    return Estimate(tuple(items), trained, *_device())


def shapes(folder: Path) -> Shapes:
    """Name and shape of every tensor in a part's safetensors files, read from their headers."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weights_files(folder):
        with safe_open(file, framework="pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    return found


def count(parameters: Shapes) -> int:
    """Numbers in all tensors together."""
    return sum(math.prod(shape) for shape in parameters.values())


def lora_parameters(parameters: Shapes, lora: config.Lora, default_targets: Sequence[str]) -> int:
    """Numbers in the adapters: rank·(inputs + outputs) for each layer whose name is a target or ends in one (peft's rule)."""
    targets = tuple(lora.targets or default_targets)
    layers = {name.removesuffix(".weight"): shape for name, shape in parameters.items() if name.endswith(".weight") and len(shape) >= 2}
    adapted = [shape for name, shape in layers.items() if any(name == target or name.endswith(f".{target}") for target in targets)]
    return sum(lora.rank * (math.prod(shape[1:]) + shape[0]) for shape in adapted)


def image_size(run: config.Run, folder: Path) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, else the size the checkpoint was made for."""
    size: Any = read_json(folder / "vae/config.json")["sample_size"]
    if run.model.family == "sd":
        size = read_json(folder / "unet/config.json")["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    scale = _downscaling(folder) if run.model.family == "sd" else 1
    return run.rollout.height or height * scale, run.rollout.width or width * scale


def size_multiple(run: config.Run, folder: Path) -> int:
    """Pixels that both sides of an image must be a multiple of: 2x2 latents for flux, every level of the UNet for sd."""
    levels = 2 if run.model.family == "flux" else 2 ** (len(read_json(folder / "unet/config.json")["block_out_channels"]) - 1)
    return levels * _downscaling(folder)


def _frozen(run: config.Run, folder: Path, denoiser: Shapes) -> list[Item]:
    width, items = BYTES[run.model.dtype], []
    for part in FROZEN[run.model.family]:
        parameters = count(shapes(folder / part))
        items.append(Item(part, parameters * width, f"{_millions(parameters)}, {run.model.dtype}, frozen"))
    if run.model.tune == "lora":
        name = DENOISER[run.model.family]
        items.append(Item(name, count(denoiser) * width, f"{_millions(count(denoiser))}, {run.model.dtype}, frozen"))
    if run.reward.name == "clip" and run.reward.path is not None:
        parameters = count(shapes(resolve(run.reward.path)))
        items.append(Item("reward", parameters * 4, f"{_millions(parameters)}, float32, frozen"))
    return items


def _trained(run: config.Run, parameters: int) -> list[Item]:
    what = "adapters" if run.model.tune == "lora" else DENOISER[run.model.family]
    items = [
        Item(f"{what}, trained", 4 * parameters, f"{_millions(parameters)}, float32"),
        Item("gradient", 4 * parameters, "float32"),
        Item("AdamW", ADAMW_BYTES * parameters, "two averages, float32"),
    ]
    if run.train.ema_decay is not None:
        items.append(Item("average of weights", 4 * parameters, "float32"))
    if run.model.tune == "full" and isinstance(run.method, config.FlowGRPO) and run.method.kl_weight > 0:
        items.append(Item("frozen copy of weights", 4 * parameters, "float32, for method.kl_weight"))
    if run.model.dtype == "bfloat16" and run.model.tune == "full":
        items.append(Item("cast weights", 2 * parameters, "bfloat16 copy during the forward pass"))
    return items


def _activations(run: config.Run, folder: Path) -> list[Item]:
    """Of one loss, since each is backed up before the next: the denoiser's calls that it keeps, and the VAE decoder if the reward is differentiated."""
    height, width = image_size(run, folder)
    grpo = isinstance(run.method, config.FlowGRPO)
    samples = run.data.batch_size * (run.method.group_size if isinstance(run.method, config.FlowGRPO) else 1)
    scale, calls = samples * BYTES[run.model.dtype], kept_calls(run.method)
    latent = (height // _downscaling(folder), width // _downscaling(folder))
    network = _flux_numbers(run, folder, latent) if run.model.family == "flux" else _unet_numbers(run, folder, latent)
    kept = "checkpointed" if run.model.gradient_checkpointing else "all kept"
    note = f"batch {samples}, {height}x{width}, {kept}"
    several = f"{calls} calls of " if calls > 1 else ""
    items = [Item(f"activations, {DENOISER[run.model.family]}", scale * calls * network, several + note, is_allowance=True)]
    decoder = Item("activations, vae", scale * _vae_numbers(run, folder, height, width), note, is_allowance=True)
    return items if grpo else [*items, decoder]


def kept_calls(method: config.Method) -> int:
    """Calls of the denoiser whose activations one loss keeps at once; AlignProp recomputes all of its but one."""
    if isinstance(method, config.DRaFT):
        return method.grad_steps
    if isinstance(method, config.DRTune | config.FlowBP):
        return method.trained_steps
    return 2 if isinstance(method, config.LeapAlign) else 1


def _flux_numbers(run: config.Run, folder: Path, latent: tuple[int, int]) -> int:
    settings = read_json(folder / "transformer/config.json")
    extra = folder / "directalign.json"
    text = read_json(extra).get("max_sequence_length", 512) if extra.exists() else 512
    layer = (latent[0] * latent[1] // 4 + text) * settings["num_attention_heads"] * settings["attention_head_dim"]
    layers = settings["num_layers"] + settings["num_single_layers"]
    kept = KEPT_PER_TOKEN[run.model.tune]
    return layer * (layers + kept) if run.model.gradient_checkpointing else layer * layers * kept


def _unet_numbers(run: config.Run, folder: Path, latent: tuple[int, int]) -> int:
    settings = read_json(folder / "unet/config.json")
    return _map_numbers(settings, latent, 2, KEPT_PER_CELL[run.model.tune], run.model.gradient_checkpointing)


def _vae_numbers(run: config.Run, folder: Path, height: int, width: int) -> int:
    return _map_numbers(read_json(folder / "vae/config.json"), (height, width), 1, KEPT_PER_CELL_VAE, run.model.gradient_checkpointing)


def _map_numbers(settings: Mapping[str, Any], size: tuple[int, int], sides: int, kept: int, checkpointed: bool) -> int:
    """Feature maps of all levels, the finest of `size`; `sides` is 2 where there is a way down and a way up."""
    layers = settings["layers_per_block"]
    deepest = max(layers) if isinstance(layers, list) else layers
    cells = [channels * size[0] * size[1] // 4**level for level, channels in enumerate(settings["block_out_channels"])]
    per_level = sides * deepest + 1
    return sum(cells) * per_level + max(cells) * per_level * kept if checkpointed else sum(cells) * per_level * kept


def _downscaling(folder: Path) -> int:
    return 2 ** (len(read_json(folder / "vae/config.json")["block_out_channels"]) - 1)


def _device() -> tuple[str, int]:
    """Name and memory in bytes of the device a run would train on."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f} M parameters"
