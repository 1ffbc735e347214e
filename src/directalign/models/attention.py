"""Attention backends and compiled blocks of diffusers: faster denoisers with the same results.

`compile_repeated_blocks` compiles one block of each kind for all of them. A backend without a
backward pass is refused.
"""

from typing import Any

import torch
import torch._dynamo
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from .. import config
from ..errors import first_line
from ..types import DirectAlignError

WITHOUT_BACKWARD = "sage"
"""Backends with this in their name quantize the forward pass and have no gradient."""

HALF_ONLY = ("flash", "cudnn", "npu", "aiter")
"""Backends with one of these in their name take bfloat16 or float16, no float32."""
WITHOUT_MASK = ("flash", "aiter", "xla")
"""Backends with one of these in their name take no mask, unless of variable lengths."""


RECOMPILE_LIMIT = 128
"""Variants of a block beyond which torch runs it uncompiled; its default of 8 is too few."""


def check_inputs(model: config.ModelConfig, architecture: Any) -> None:
    """Raise unless the backend takes the dtype and the masks of this architecture's attention, and
    its text encoders can be freed where they are."""
    if model.text_encoders == "free" and getattr(architecture, "reads_sources", False):
        raise DirectAlignError(
            f"model.text_encoders: free is not supported here ({architecture.title} reads each "
            "prompt with its source image, which no embedding made in advance has seen): set "
            "offload"
        )
    name, masked = model.attention or "", getattr(architecture, "masks_attention", False)
    if WITHOUT_BACKWARD in name:
        return  # refused by `check_attention`
    if model.dtype == "float32" and any(part in name for part in HALF_ONLY):
        raise DirectAlignError(
            f"model.attention: {name} cannot be used here (it takes no float32): set model.dtype: "
            "bfloat16, or leave the key out"
        )
    if masked and "varlen" not in name and any(part in name for part in WITHOUT_MASK):
        raise DirectAlignError(
            f"model.attention: {name} cannot be used here (it takes no mask, which "
            f"{architecture.title} needs for prompts of different lengths): leave the key out"
        )


def accelerate(denoiser: Any, model: config.ModelConfig) -> None:
    """Set the recipe's attention backend and compile the blocks if it says so.

    Raises DirectAlignError for a backend that cannot be used here.
    """
    if model.attention is not None:
        check_attention(denoiser, model.attention)
        set_attention(denoiser, model.attention)
    if model.compile:
        # a variant of a block for each size, with and without gradient, adapters and base model
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        # else a compiled block would not notice the hooks of rollout.lora
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        denoiser.compile_repeated_blocks()


def check_attention(denoiser: Any, name: str) -> None:
    """Raise unless the backend can train and the denoiser supports backends, installed or not."""
    known = [
        backend.value for backend in AttentionBackendName if WITHOUT_BACKWARD not in backend.value
    ]
    if name not in known:
        raise DirectAlignError(
            f"model.attention: {name} is not a backend that can train: choose one of "
            f"{', '.join(known)}, or leave the key out"
        )
    processors = [getattr(module, "processor", None) for module in denoiser.modules()]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise DirectAlignError(
            f"model.attention: {name}, and a {type(denoiser).__name__} has no choice of attention "
            "backends: leave the key out"
        )


def set_attention(denoiser: Any, name: str) -> None:
    """Set the backend of this network only. Raises DirectAlignError if it is not available here."""
    try:
        with attention_backend(name):  # restores the default, which the next call changes globally
            denoiser.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        raise DirectAlignError(
            f"model.attention: {name} cannot be used here ({first_line(error)}): install what it "
            "needs, or leave the key out"
        ) from error
