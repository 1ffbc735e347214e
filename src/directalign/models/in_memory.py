"""A diffusers pipeline in memory as the model of a run, and a pipeline again afterwards.

The parts are used as they are, without a copy: `source_of` checks that they can be trained,
`borrowed` undoes what training changes but the trained weights.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..types import DirectAlignError
from . import architectures, lora
from .checkpoint_source import Source

UNTRAINABLE = "{} weights cannot be trained: pipe.to(torch.bfloat16), or load it in float32"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def architecture_of(pipe: Any) -> str:
    """The `model.architecture` of a pipeline, by its class or one that this is derived from.

    Raises DirectAlignError for another object, and for a class that is not supported.
    """
    _require_pipeline(pipe)
    known = architectures()
    found = (known[each.__name__] for each in type(pipe).__mro__ if each.__name__ in known)
    if (name := next(found, None)) is None:
        raise DirectAlignError(
            f"pipe: a {type(pipe).__name__} is not supported: load the model as one of "
            f"{', '.join(known)}"
        )
    return name


def source_of(pipe: Any) -> Source:
    """The pipeline as a checkpoint; `name` is where it was loaded from, else empty.

    Raises DirectAlignError for another object, and a pipeline that is offloaded or split over
    devices.
    """
    _require_pipeline(pipe)
    for name, module in _modules(pipe).items():
        if getattr(pipe, "hf_device_map", None) or any(map(_is_offloaded, module.modules())):
            raise DirectAlignError(
                f"pipe.{name}: is offloaded or placed by a device map, which moves weights during "
                "training: pipe.remove_all_hooks() and pipe.to('cuda'), or load it without"
            )
        if getattr(module, "is_cache_enabled", False):
            raise DirectAlignError(
                f"pipe.{name}: skips blocks by a cache, also in training: "
                f"pipe.{name}.disable_cache()"
            )
    devices = {name: next(module.parameters()).device for name, module in _modules(pipe).items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise DirectAlignError(f"pipe: {found}: put all on one device, pipe.to('cuda')")
    name = str(pipe.config.get("_name_or_path") or "")
    return Source(name, FilePath(name or type(pipe).__name__), pipeline=pipe)


def _require_pipeline(pipe: Any) -> None:
    if not isinstance(pipe, DiffusionPipeline):
        raise DirectAlignError(
            f"pipe: got {pipe!r:.60}, a loaded pipeline is needed: "
            "pipe = diffusers.DiffusionPipeline.from_pretrained(...)"
        )


def dtype_of(pipe: Any, part: str) -> str:
    """The `model.dtype` of a pipeline with the denoiser `part`: float32 or bfloat16.

    Raises DirectAlignError for another one, and for parts of different ones; the VAE may be
    float32.
    """
    dtypes = {name: _dtype(module) for name, module in _modules(pipe).items()}
    if part not in dtypes:
        raise DirectAlignError(f"pipe.{part}: is None; load the pipeline with its {part}")
    own = dtypes[part]
    if own not in DTYPES:
        raise DirectAlignError(
            f"pipe.{part}: {UNTRAINABLE.format(str(own).removeprefix('torch.'))}"
        )
    for name, dtype in dtypes.items():
        if dtype != own and (name == part or name.startswith("text_encoder")):
            raise DirectAlignError(
                f"pipe.{name}: is {dtype} beside a {part} of {own}: pipe.to({own})"
            )
    if dtypes["vae"] not in (own, torch.float32):
        raise DirectAlignError(
            f"pipe.vae: is {dtypes['vae']} beside a {part} of {own}: pipe.to({own})"
        )
    return DTYPES[own]


def adapter_of(denoiser: Any) -> Mapping[str, Any] | None:
    """`model.lora` of the adapters that an earlier alignment left on a denoiser, None without any.

    Raises DirectAlignError for adapters of other names, which would change the base model.
    """
    adapters = getattr(denoiser, "peft_config", None) or {}
    if others := sorted(adapters.keys() - {lora.ADAPTER}):
        raise DirectAlignError(
            f"pipe: has the adapters {', '.join(others)}: merge them (pipe.fuse_lora(), then "
            f"pipe.unload_lora_weights()) or drop them, or load one with "
            f"adapter_name={lora.ADAPTER!r} to continue it"
        )
    return lora.settings_of(denoiser) if lora.ADAPTER in adapters else None


@contextmanager
def borrowed(pipe: Any, part: str) -> Iterator[None]:
    """The pipeline may be trained inside; afterwards it samples as before, with other weights.

    In eval mode, of the dtype it had, without gradient checkpointing unless it had it. A new
    adapter that was never updated, because of an error, is removed.
    """
    denoiser, modules = getattr(pipe, part), _modules(pipe)
    had_adapter = lora.has_adapters(denoiser)
    parameters = [(p, p.requires_grad, p.dtype) for m in modules.values() for p in m.parameters()]
    diffusers_models = (denoiser, pipe.vae)
    recomputes = {each for each in diffusers_models if each.is_gradient_checkpointing}
    layout = _memory_format(pipe.vae)
    try:
        yield
    finally:
        for module in modules.values():
            module.eval()
        for module in diffusers_models:
            if module.is_gradient_checkpointing and module not in recomputes:
                module.disable_gradient_checkpointing()
        pipe.vae.to(memory_format=layout)
        if lora.has_adapters(denoiser) and not had_adapter and lora.is_without_effect(denoiser):
            denoiser.unload_lora()
        adapted = set(denoiser.parameters()) if lora.has_adapters(denoiser) else set()
        denoiser.zero_grad()
        for parameter, requires_grad, dtype in parameters:
            if parameter.is_floating_point() and parameter not in adapted:
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad_(requires_grad)


def _modules(pipe: Any) -> dict[str, nn.Module]:
    """The models of the pipeline by name."""
    parts = pipe.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module)}


def _is_offloaded(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    grouped = registry is not None and "group_offloading" in getattr(registry, "hooks", {})
    return grouped or hasattr(module, "_hf_hook")


def _dtype(module: nn.Module) -> torch.dtype:
    """Of most of the weights, without adapters, which are float32."""
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not lora.is_adapter(name):
            sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0]


def _memory_format(module: nn.Module) -> torch.memory_format:
    kernels = [p for p in module.parameters() if p.dim() == 4 and not p.is_contiguous()]
    last = any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    return torch.channels_last if last else torch.contiguous_format
