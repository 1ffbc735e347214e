"""What of a denoiser is trained, and how that is written and read: LoRA adapters, or all weights.

LoRA goes to `lora.safetensors` in diffusers format with alpha / rank folded into the second factor, so every reader that
takes alpha = rank where none is given (diffusers, ComfyUI) sees the update that was trained, whatever alpha was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import config
from ..types import DirectAlignError
from .quantization import placed
from .weight_files import check_safetensors, weights_files

LORA_FILE = "lora.safetensors"
ADAPTER = "default"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What LoRA adapts; layers of a quantised model are among them."""


def ready(
    network: Any,
    model: config.ModelConfig,
    default_targets: Sequence[str],
    device: torch.device,
    seed: int,
) -> nn.Module:
    """A frozen network made the denoiser of a run: on its device, in the recipe's bits, with what is trained opened, activations recomputed or kept."""
    denoiser: Any = placed(network, model, device)
    make_trainable(denoiser, model, default_targets, seed)
    if model.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    return denoiser


def make_trainable(
    denoiser: Any, model: config.ModelConfig, default_targets: Sequence[str], seed: int
) -> None:
    """Opens all weights, or adds adapters in float32: the first factor drawn from `seed`, the second 0, so nothing changes yet."""
    if model.tune == "full":
        for parameter in denoiser.requires_grad_(True).parameters():
            parameter.data = parameter.data.to(getattr(torch, model.trained_dtype))
        return
    targets = list(model.lora.targets or default_targets)
    _check_targets(denoiser, model.lora, targets)
    settings = LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=targets,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser.add_adapter(settings, adapter_name=ADAPTER)
    for parameter in trained(denoiser).values():
        parameter.data = parameter.data.float()


def _check_targets(denoiser: nn.Module, lora: config.LoRAConfig, targets: Sequence[str]) -> None:
    """Each target that the recipe names is a layer that LoRA can adapt, as peft looks them up, and none is too small for the rank."""
    layers = {
        name: layer for name, layer in denoiser.named_modules() if isinstance(layer, ADAPTABLE)
    }
    fitting = {
        target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets
    }
    lost = [target for target in lora.targets or () if not fitting[target]]
    if lost:
        known = {
            re.sub(r"^.*?\.\d+\.", "", name) for name in layers
        }  # without the block it stands in
        near = sorted(
            {
                match
                for target in lost
                for match in get_close_matches(
                    target, known | {name.split(".")[-1] for name in known}, n=2
                )
            }
        )
        hint = (
            f"did you mean {', '.join(near)}?" if near else "leave the key out for the usual ones"
        )
        raise DirectAlignError(
            f"model.lora.targets: {lost} fit no linear or convolution layer of this model: {hint}"
        )
    for name in sorted({name for names in fitting.values() for name in names}):
        limit = _smaller_side(layers[name])
        if lora.rank > limit:
            raise DirectAlignError(
                f"model.lora.rank: {lora.rank} is more than {name} can take, whose smaller side is {limit}: give {limit} or less"
            )


def _smaller_side(layer: Any) -> int:
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    return min(layer.in_channels * math.prod(layer.kernel_size), layer.out_channels)


def trained(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that carry gradient, by name."""
    return {
        name: parameter
        for name, parameter in denoiser.named_parameters()
        if parameter.requires_grad
    }


def save(denoiser: Any, folder: FilePath, part: str, pipeline: Any) -> None:
    """Writes `lora.safetensors` into `folder` as `pipeline` (a class of diffusers) does, or all weights as `part`: `transformer/` or `unet/`."""
    if not _has_adapters(denoiser):
        denoiser.save_pretrained(folder / part)
        return
    layers = {
        key: parameter.detach() * _scale(denoiser, key)
        for key, parameter in _adapters(denoiser).items()
    }
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": layers}, weight_name=LORA_FILE)


def load(denoiser: Any, folder: FilePath, part: str) -> None:
    """Reads what `save` wrote; a missing or torn file, other layers, another rank or architecture are errors that name it."""
    if _has_adapters(denoiser):
        _load_lora(denoiser, folder / LORA_FILE, part)
    else:
        _load_full(denoiser, folder / part)


def _load_lora(denoiser: nn.Module, file: FilePath, part: str) -> None:
    check_safetensors(file)
    found = {key.removeprefix(f"{part}."): tensor for key, tensor in load_file(file).items()}
    own = _adapters(denoiser)
    _check_fit(
        file,
        own,
        found,
        remedy="use the model.path, model.lora.rank and model.lora.targets it was trained with",
    )
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(found[key] / _scale(denoiser, key))


def _load_full(denoiser: nn.Module, folder: FilePath) -> None:
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such folder: give a run that was trained with model.tune: full, or set tune: lora"
        )
    found = {
        key: tensor for file in weights_files(folder) for key, tensor in load_file(file).items()
    }
    _check_fit(
        folder, denoiser.state_dict(), found, remedy="use the model.path it was trained from"
    )
    denoiser.load_state_dict(found)


def _has_adapters(denoiser: nn.Module) -> bool:
    return bool(getattr(denoiser, "peft_config", None))


def _adapters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The trained factors under the names they have in a file."""
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in trained(denoiser).items()
    }


def _scale(denoiser: Any, key: str) -> float:
    settings = denoiser.peft_config[ADAPTER]
    return settings.lora_alpha / settings.r if ".lora_B." in key else 1.0


def _check_fit(
    file: FilePath, own: Mapping[str, Tensor], found: Mapping[str, Tensor], remedy: str
) -> None:
    differing = sorted(own.keys() ^ found.keys())
    if differing:
        verb = "lacks" if differing[0] in own else "has"
        raise DirectAlignError(
            f"{file}: made for other layers or another architecture: it {verb} {differing[0]} ({len(differing)} differ): {remedy}"
        )
    for key, tensor in own.items():
        if tensor.shape != found[key].shape:
            raise DirectAlignError(
                f"{file}: {key} is {tuple(found[key].shape)}, this model has {tuple(tensor.shape)}: {remedy}"
            )
