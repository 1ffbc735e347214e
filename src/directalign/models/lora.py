"""What of a denoiser is trained, and its files: LoRA adapters, or all weights.

LoRA is written to `lora.safetensors` in diffusers format with alpha / rank folded into the second
factor, so readers that take alpha = rank where none is given (diffusers, ComfyUI) get the trained
update.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .. import config
from ..io.tensors import check_names, read_safetensors, shapes_of
from ..types import DirectAlignError
from .quantization import quantize
from .weight_files import weights_files

LORA_FILE = "lora.safetensors"
ADAPTER = "default"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that LoRA adapts; layers of a quantized model are subclasses."""

_denoiser_device: ContextVar[torch.device | None] = ContextVar("denoiser_device", default=None)


@contextmanager
def denoiser_on(device: torch.device | None) -> Iterator[None]:
    """Place denoisers loaded inside on this device; None: on the device of their model."""
    token = _denoiser_device.set(device)
    try:
        yield
    finally:
        _denoiser_device.reset(token)


def ready(
    network: Any,
    model: config.ModelConfig,
    default_targets: Sequence[str],
    device: torch.device,
    seed: int,
) -> nn.Module:
    """A frozen network as the denoiser of a run: on its device, quantized, trainable.

    `model` decides on quantization, adapters and gradient checkpointing; `seed` draws the adapters.
    """
    home = _denoiser_device.get() or device
    if model.quantization is not None:
        quantize(network, model.quantization, device, home)
    network.to(home)
    make_trainable(network, model, default_targets, seed)
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def make_trainable(
    denoiser: Any, model: config.ModelConfig, default_targets: Sequence[str], seed: int
) -> None:
    """Make all weights trainable, or add float32 adapters (A drawn from `seed`, B 0).

    Adapters that the denoiser of a pipeline in memory has already are trained further.
    """
    if model.tune == "full":
        for parameter in denoiser.requires_grad_(True).parameters():
            parameter.data = parameter.data.to(getattr(torch, model.trained_dtype))
        return
    targets = list(model.lora.targets or default_targets)
    if ADAPTER in getattr(denoiser, "peft_config", {}):
        _continue_adapter(denoiser, model.lora, targets)
        return
    _check_targets(denoiser, model.lora, targets)
    settings = LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=targets,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(settings, adapter_name=ADAPTER)
    for parameter in trained(denoiser).values():
        parameter.data = parameter.data.float()


def _continue_adapter(denoiser: Any, lora: config.LoRAConfig, targets: Sequence[str]) -> None:
    """Train the adapters further, at full strength. Raises DirectAlignError if they do not fit."""
    layers = {name: each for name, each in denoiser.named_modules() if is_adapted(each)}
    given = denoiser.peft_config[ADAPTER]
    fits = (given.r, given.lora_alpha) == (lora.rank, lora.alpha) and all(
        any(f".{name}".endswith(f".{target}") for target in targets) for name in layers
    )
    if not fits or any(layer.merged for layer in layers.values()):
        raise DirectAlignError(
            f"pipe: has a LoRA of rank {given.r} and alpha {given.lora_alpha}, fused or of other "
            f"layers or sizes than model.lora (rank {lora.rank}, alpha {lora.alpha}): "
            "pipe.unload_lora_weights() begins anew"
        )
    denoiser.set_adapters([ADAPTER])
    denoiser.enable_adapters()
    for parameter in adapter_parameters(denoiser):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def adapter_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """The weights of the adapters, frozen or not."""
    named = denoiser.named_parameters()
    return [each for name, each in named if ".lora_" in name and f".{ADAPTER}." in name]


def is_adapted(layer: nn.Module) -> bool:
    """Whether the layer has adapters of `ADAPTER`."""
    return isinstance(layer, BaseTunerLayer) and ADAPTER in layer.lora_A  # pyright: ignore


def _check_targets(denoiser: nn.Module, lora: config.LoRAConfig, targets: Sequence[str]) -> None:
    """Every target of the recipe names an adaptable layer, and the rank fits every such layer."""
    layers = {
        name: layer for name, layer in denoiser.named_modules() if isinstance(layer, ADAPTABLE)
    }
    matches = {
        target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets
    }
    unknown = [target for target in lora.targets or () if not matches[target]]
    if unknown:
        inner = {re.sub(r"^.*?\.\d+\.", "", name) for name in layers}  # names within a block
        known = inner | {name.split(".")[-1] for name in inner}
        near = sorted({match for each in unknown for match in get_close_matches(each, known, n=2)})
        hint = f"did you mean {', '.join(near)}?" if near else "leave the key out for the default"
        raise DirectAlignError(
            f"model.lora.targets: {unknown} fit no linear or convolution layer of this model: "
            f"{hint}"
        )
    for name in sorted({name for names in matches.values() for name in names}):
        layer: Any = layers[name]
        if isinstance(layer, nn.Linear):
            limit = min(layer.in_features, layer.out_features)
        else:
            limit = min(layer.in_channels * math.prod(layer.kernel_size), layer.out_channels)
        if lora.rank > limit:
            raise DirectAlignError(
                f"model.lora.rank: {lora.rank} is more than {name} can take, whose smaller side is "
                f"{limit}: give {limit} or less"
            )


def trained(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get a gradient, by name."""
    return {name: each for name, each in denoiser.named_parameters() if each.requires_grad}


def has_adapters(denoiser: nn.Module) -> bool:
    """Whether LoRA is trained; then the network without adapters is the base model."""
    return bool(getattr(denoiser, "peft_config", None))


def save(denoiser: Any, folder: FilePath, part: str, pipeline: Any) -> None:
    """Write `lora.safetensors` as `pipeline` of diffusers does, or all weights as `part`/."""
    if not has_adapters(denoiser):
        denoiser.save_pretrained(folder / part)
        return
    layers = {
        key: parameter.detach() * _scale(denoiser, key)
        for key, parameter in _adapters(denoiser).items()
    }
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": layers}, weight_name=LORA_FILE)


def load(denoiser: Any, folder: FilePath, part: str) -> None:
    """Read what `save` wrote. Raises DirectAlignError for a missing or unfitting file."""
    if not has_adapters(denoiser):
        _load_full(denoiser, folder / part)
        return
    file, own = folder / LORA_FILE, _adapters(denoiser)
    found = {key.removeprefix(f"{part}."): each for key, each in read_safetensors(file).items()}
    keys = "model.path, model.lora.rank and model.lora.targets"
    _check_fit(file, own, found, f"use the {keys} it was trained with")
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(found[key] / _scale(denoiser, key))


def _load_full(denoiser: nn.Module, folder: FilePath) -> None:
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such folder: give a run that was trained with model.tune: full, or "
            "set tune: lora"
        )
    found = dict[str, Tensor]()
    for file in weights_files(folder):
        found |= read_safetensors(file)
    _check_fit(folder, denoiser.state_dict(), found, "use the model.path it was trained from")
    denoiser.load_state_dict(found)


def _adapters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The trained factors under their names in a file."""
    return {name.replace(f".{ADAPTER}.", "."): each for name, each in trained(denoiser).items()}


def _scale(denoiser: Any, key: str) -> float:
    settings = denoiser.peft_config[ADAPTER]
    return settings.lora_alpha / settings.r if ".lora_B." in key else 1.0


def _check_fit(
    file: FilePath, own: Mapping[str, Tensor], found: Mapping[str, Tensor], remedy: str
) -> None:
    where = f"{file}: made for other layers, another rank or another architecture"
    check_names(shapes_of(own), shapes_of(found), where, remedy)


class ReferenceModel:
    """The model before training: the weights of `denoiser` at construction.

    With LoRA nothing is copied: adapters are turned off.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser: Any = denoiser
        self.has_adapters = has_adapters(denoiser)
        weights = {} if self.has_adapters else trained(denoiser)
        self.weights = {name: each.detach().clone() for name, each in weights.items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The denoiser has the reference weights inside, its own outside, also after an error.

        For calls without gradient.
        """
        enter, leave = self._swap, self._swap
        if self.has_adapters:
            enter, leave = self.denoiser.disable_adapters, self.denoiser.enable_adapters
        enter()
        try:
            yield
        finally:
            leave()

    def _swap(self) -> None:
        """In place: a sharded weight is bound to the memory that it is gathered from."""
        for name, parameter in trained(self.denoiser).items():
            own = parameter.detach().clone()
            parameter.detach().copy_(self.weights[name])
            self.weights[name].copy_(own)
