"""Networks without their weights: built from their configs on the meta device, then given fake tensors to be called with.

A fake tensor has a shape, a dtype and a device, and no numbers: operations on it say what they would make. It poses as one of
the CPU, where attention is fused as it is on a GPU; `normalise_as_on_gpu` adds what autocast does there and does not do here.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..types import DirectAlignError
from .reward_networks import OWN


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its class in diffusers, transformers or `reward_networks`, and its config as JSON."""

    class_name: str
    text: str

    @classmethod
    def of(cls, class_name: str, settings: Mapping[str, Any]) -> Part:
        """From a config as it stands in config.json; what speaks of files and versions is left out."""
        told = {
            key: value
            for key, value in settings.items()
            if not key.startswith("_") and key not in ("architectures", "transformers_version")
        }
        return cls(class_name, json.dumps(told, sort_keys=True))

    @property
    def config(self) -> dict[str, Any]:
        """The config, without what the class would fill in."""
        return json.loads(self.text)

    def changed(self, **settings: Any) -> Part:
        """The same network with other settings."""
        return Part.of(self.class_name, self.config | settings)


def built(part: Part) -> Any:
    """The network on the meta device, frozen, float32. Raises DirectAlignError for a class or config that the libraries do not know."""
    of_diffusers = getattr(diffusers, part.class_name, None)
    of_transformers = getattr(transformers, part.class_name, None)
    if part.class_name not in OWN and of_diffusers is None and of_transformers is None:
        raise DirectAlignError(
            f"{part.class_name}: neither diffusers nor transformers has this class: update them, or give another model.path"
        )
    try:
        with torch.device("meta"):
            network = (
                OWN[part.class_name](part.config)
                if part.class_name in OWN
                else _of_library(of_diffusers, of_transformers, part.config)
            )
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise DirectAlignError(
            f"{part.class_name}: its config.json describes no such network ({error}): copy the folder again"
        ) from error
    return network.requires_grad_(False).eval()


def _of_library(of_diffusers: Any, of_transformers: Any, settings: dict[str, Any]) -> nn.Module:
    return (
        of_diffusers.from_config(settings)
        if of_diffusers
        else of_transformers(of_transformers.config_class.from_dict(settings))
    )


@cache
def shapes(part: Part) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every parameter; tied ones once."""
    return {name: tuple(parameter.shape) for name, parameter in built(part).named_parameters()}


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' remarks on networks that nobody will use."""
    logger = diffusers.utils.logging.get_logger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def faked(network: nn.Module, mode: FakeTensorMode, with_gradients: bool = False) -> None:
    """Put fake tensors of the CPU in the place of all parameters, buffers and other tensors; trained ones get a gradient if asked for."""
    with mode:
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = _fake_parameter(parameter, with_gradients)
            for name, tensor in (*module._buffers.items(), *vars(module).items()):
                if isinstance(tensor, Tensor):
                    setattr(module, name, torch.empty(tensor.shape, dtype=tensor.dtype))


@contextmanager
def in_shapes_alone(network: nn.Module, with_gradients: bool = False) -> Iterator[FakeTensorMode]:
    """Inside, the network has fake tensors, and so have all tensors that are made; the mode may be left and entered again."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    faked(network, mode, with_gradients)
    with mode:
        yield mode


def _fake_parameter(parameter: nn.Parameter, with_gradients: bool) -> nn.Parameter:
    fake = nn.Parameter(
        torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=parameter.requires_grad
    )
    if with_gradients and fake.requires_grad:
        fake.grad = torch.empty_like(fake)
    return fake


def residents(network: nn.Module) -> list[Tensor]:
    """All tensors that a network holds between calls, gradients included."""
    held = [*network.parameters(), *network.buffers()]
    loose = [
        tensor
        for module in network.modules()
        for tensor in vars(module).values()
        if isinstance(tensor, Tensor)
    ]
    return [
        *held,
        *loose,
        *(parameter.grad for parameter in network.parameters() if parameter.grad is not None),
    ]


def normalise_as_on_gpu(network: nn.Module) -> None:
    """Norms under autocast take and give float32 on a GPU; on a CPU autocast leaves them alone."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.float().register_forward_pre_hook(_widen)


def _widen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs) if torch.is_autocast_enabled("cpu") else inputs
