"""A LoRA beside the model (`rollout.lora`), active only while images to train on are sampled.

Forward hooks add up(down(x)) to the outputs of the layers that the file names. So it is no part of
the denoiser: training, measurements and saved weights are without it, and it works beside adapters
of peft, quantized and sharded weights, and with `tune: full`. `attention.accelerate` makes compiled
blocks notice hooks.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from ..interfaces import Model
from ..types import DirectAlignError
from .lora import lora_file, read_lora
from .lora_files import LowRank

KEY = "rollout.lora"


class RolloutLoRA:
    """The LoRA `given` of `model`. Raises DirectAlignError if it is missing or does not fit."""

    def __init__(self, given: str, model: Model) -> None:
        file = lora_file(given, KEY)
        updates = read_lora(file, KEY, model.part, model.pipeline)
        self.layers = _layers_of(file, updates, model.denoiser)
        device = next(model.denoiser.parameters()).device
        self.factors = {
            name: (each.down.to(device), each.up.to(device)) for name, each in updates.items()
        }
        self.fingerprint = _fingerprint(updates)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model's predictions inside are those with the LoRA."""
        hooks = [
            self.layers[name].register_forward_hook(partial(_added, factors))
            for name, factors in self.factors.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _added(factors: tuple[Tensor, Tensor], layer: nn.Module, given: Any, out: Tensor) -> Tensor:
    x = given[0]
    down, up = (each.to(x) for each in factors)
    if down.ndim == 2:
        return out + linear(linear(x, down), up).to(out.dtype)
    plain = _plain(layer)
    middle = conv2d(x, down, None, plain.stride, plain.padding, plain.dilation)
    return out + conv2d(middle, up).to(out.dtype)


def _plain(layer: Any) -> Any:
    """The layer itself, without the adapters that peft wraps it in."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _layers_of(
    file: Path, updates: Mapping[str, LowRank], denoiser: nn.Module
) -> dict[str, nn.Module]:
    """The layers that the file names. Raises DirectAlignError for the first that does not fit."""
    modules = dict(denoiser.named_modules())
    for name, update in updates.items():
        layer = modules.get(name)
        if layer is None:
            raise DirectAlignError(
                f"{KEY}: {file}: adapts {name}, which this model lacks; give a LoRA of model.path"
            )
        own, given = _sizes(_plain(layer)), (*update.up.shape[:1], *update.down.shape[1:])
        if own != given:
            found = "no layer that a LoRA fits" if own is None else f"of sizes {own}"
            raise DirectAlignError(
                f"{KEY}: {file}: adapts {name} with factors of sizes {given}, and it is {found} "
                "in this model; give a LoRA of model.path"
            )
    return {name: modules[name] for name in updates}


def _sizes(layer: nn.Module) -> tuple[int, ...] | None:
    """(out, in) of a linear layer, (out, in, height, width) of a convolution, None of others."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    return None


def _fingerprint(updates: Mapping[str, LowRank]) -> str:
    digest = hashlib.sha256()
    for name, update in updates.items():
        for factor in (update.down, update.up):
            digest.update(f"{name} {tuple(factor.shape)} ".encode())
            digest.update(factor.float().numpy().tobytes())
    return digest.hexdigest()[:16]
