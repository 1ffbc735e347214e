"""The parts of a network call that families share: autocast, and one pass or two for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..diffusion.prediction import classifier_free
from ..types import Conditioning, DirectAlignError, Latents

Combine = Callable[[Latents, Latents, float], Latents]
"""(under the prompt, under the empty prompt, cfg_scale) -> the guided prediction."""


def guided(call: Callable[[Mapping[str, Tensor]], Latents], cond: Conditioning, combine: Combine = classifier_free) -> Latents:
    """`call` under the prompt, and under the empty prompt too when `cfg_scale` is not 1."""
    pred = call(cond.tensors)
    if cond.cfg_scale == 1.0:
        return pred
    if cond.unconditional is None:
        raise DirectAlignError(f"cfg_scale {cond.cfg_scale} needs the embedding of the empty prompt: encode the prompts with the family, or set cfg_scale 1")
    return combine(pred, call(cond.unconditional), cond.cfg_scale)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision where the forward pass is bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
