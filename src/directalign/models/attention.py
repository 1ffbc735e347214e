"""What makes the denoiser faster without changing what it computes: another attention kernel, and compiled blocks.

Both are the library's own: its attention backends, and `compile_repeated_blocks`, which compiles one block of each kind and
uses it for all of them. A backend without a backward pass cannot train and is refused.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from .. import config
from ..types import DirectAlignError

WITHOUT_BACKWARD = "sage"
"""Backends of this name quantise the forward pass and have no gradient."""


def accelerate(denoiser: Any, model: config.ModelConfig) -> None:
    """Set the attention backend and compile the blocks as the recipe says. Raises DirectAlignError for a backend that cannot be used here."""
    if model.attention is not None:
        check_attention(denoiser, model.attention)
        set_attention(denoiser, model.attention)
    if model.compile:
        denoiser.compile_repeated_blocks()


def check_attention(denoiser: Any, name: str) -> None:
    """The backend can train, and the denoiser lets one be chosen; whether it is installed is not asked."""
    known = [
        backend.value for backend in AttentionBackendName if WITHOUT_BACKWARD not in backend.value
    ]
    if name not in known:
        raise DirectAlignError(
            f"model.attention: {name} is not a backend that can train: choose one of {', '.join(known)}, or leave the key out"
        )
    if not any(hasattr(module, "_attention_backend") for module in _processors(denoiser)):
        raise DirectAlignError(
            f"model.attention: {name}, and a {type(denoiser).__name__} chooses its attention itself: leave the key out"
        )


def set_attention(denoiser: Any, name: str) -> None:
    """Chooses a backend for this network alone. Raises DirectAlignError for one that is not installed, or not for this machine."""
    try:
        with attention_backend(
            name
        ):  # the library would change its default for every other network too; here it is put back
            denoiser.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DirectAlignError(
            f"model.attention: {name} cannot be used here ({reason}): install what it needs, or leave the key out"
        ) from error


def _processors(denoiser: Any) -> list[Any]:
    return [module.processor for module in denoiser.modules() if hasattr(module, "processor")]
