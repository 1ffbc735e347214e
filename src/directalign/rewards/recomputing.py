"""Less memory for a frozen reward: each layer keeps its input alone and runs again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute(model: nn.Module) -> None:
    """Every transformer layer of `model`; transformers itself does so in train mode only, and rewards are in eval mode."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
