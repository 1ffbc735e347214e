"""Floating-point operations of a run's network calls, counted on tensors without data.

Counted: the denoiser, in rollouts, losses and measurements. Text encoders, VAE and rewards are left
out, and a device reaches a part of its nominal rate: a time made of this is an estimate.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from .. import config
from ..evaluation.in_training import OBEYED_SAMPLES, obeyed_phrases, references_of
from ..training.data import accumulation
from .meta_models import on_meta, without_init


class CallCounter:
    """Counts samples that pass a network; `inputs` are those of its largest call."""

    def __init__(self) -> None:
        self.forward, self.backward, self.inputs = 0, 0, None
        self.samples = 1

    def hook(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pre-hook with keyword arguments."""
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        first = next(each for each in tree_leaves(args or kwargs) if isinstance(each, Tensor))
        listed = next((each for each in args if isinstance(each, list)), None)
        samples = len(listed) if listed is not None else len(first)
        self.forward += samples
        self.backward += samples * torch.is_grad_enabled()
        size = sum(each.numel() for each in tensors) / samples
        if self.inputs is None or size > self.inputs[0]:
            self.inputs, self.samples = (size, args, dict(kwargs)), samples


@dataclass(frozen=True)
class Cost:
    """FLOPs of one update on one rank, and of all updates and measurements."""

    update: float
    training: float
    measuring: float

    def hours(self, teraflops: float) -> float:
        """Hours at this rate of each GPU."""
        return (self.training + self.measuring) / (teraflops * 1e12) / 3600


def cost_of(run: config.RunConfig, denoiser: nn.Module, calls: CallCounter, ranks: int) -> Cost:
    """The cost of a run whose batch makes these calls. Raises any error of a foreign network."""
    one = _forward_flops(denoiser, calls) / calls.samples
    # adapters need the gradient of the inputs only; checkpointing runs the forward pass again
    backward = (1 if run.model.tune == "lora" else 2) + run.model.gradient_checkpointing
    per_batch = one * (calls.forward + backward * calls.backward)
    update = per_batch * accumulation(run, ranks)
    settings, steps = run.evaluate, run.train.num_steps
    between = (steps - 1) // settings.every if settings.every else 0
    images = 2 * settings.num_samples + between * settings.num_samples_during
    images += settings.num_samples * sum(bool(each.phrase) for each in references_of(run))
    if obeyed_phrases(run):
        images += 2 * min(OBEYED_SAMPLES, settings.num_samples)
    passes = run.rollout.num_inference_steps * (1 if run.rollout.cfg_scale == 1 else 2)
    return Cost(update, update * steps, one * images * passes / ranks)


def _forward_flops(denoiser: Any, calls: CallCounter) -> int:
    """FLOPs of the counter's largest call, by a whole network of the same config."""
    assert calls.inputs is not None, "no call has been seen"
    _, args, kwargs = calls.inputs

    def without_data(tensor: Tensor) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    with on_meta(), without_init():
        whole = type(denoiser).from_config(denoiser.config)
    counter = FlopCounterMode(display=False)
    with warnings.catch_warnings(), torch.no_grad(), counter:
        warnings.simplefilter("ignore")
        args, kwargs = tree_map_only(Tensor, without_data, (args, kwargs))
        whole(*args, **kwargs)
    return counter.get_total_flops()
