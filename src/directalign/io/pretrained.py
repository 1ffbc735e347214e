"""Read networks, configs and tokenizers of a folder without running Python that lies in it."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..errors import DirectAlignError, first_line
from .tensors import check_weights

NEVER_RUN = (
    "asks for Python that is not part of the library, which is never run: give the model as the "
    "library's own classes save it"
)
KERNELS = ("attn_implementation", "experts_implementation")
"""Settings that may name a repository of kernels, which the library would download and run."""
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError),
    *(AttributeError, AssertionError, ImportError),
)
"""What the libraries raise for damaged files."""


@contextmanager
def readable(where: Path, kind: Any) -> Iterator[None]:
    """What the libraries raise inside, while they read a `kind` from files, is one line."""
    try:
        yield
    except DirectAlignError:
        raise
    except UNREADABLE as error:
        why = (
            f"not readable as a {kind.__name__} ({first_line(error)}): files of one checkpoint "
            "are needed, copy them again"
        )
        why = NEVER_RUN if "trust_remote_code" in str(error) else why
        raise DirectAlignError(f"{where}: {why}") from error


def from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained` on the files of a folder; nothing is downloaded, unpickled or asked.

    Raises DirectAlignError for damaged files, and for a folder that names code of its own
    (auto_map, kernels) without which it cannot be read.
    """
    settings = _settings(folder)
    if any("/" in str(settings.get(key)) for key in KERNELS):
        raise DirectAlignError(f"{folder / 'config.json'}: {NEVER_RUN}")
    if kind.__module__.startswith("transformers."):  # diffusers runs none for a class
        options["trust_remote_code"] = False
    with readable(folder, kind), _silent("diffusers", "transformers"):
        return kind.from_pretrained(folder, local_files_only=True, **options)


@contextmanager
def _silent(*libraries: str) -> Iterator[None]:
    """Without warnings about weights that lack or are left over, which are errors here."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = {each: each.level for each in loggers if each.level != logging.ERROR}
    for logger in levels:  # as rarely as can be: it empties the caches of all loggers
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def load_network(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A network of diffusers or transformers in `dtype`, frozen, from safetensors, on the CPU.

    Raises as `from_pretrained`, and for weights that are lacking or not finite.
    """
    name = "dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype"
    options |= {name: dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = from_pretrained(kind, folder, **options)
    unset = (name for name, tensor in model.state_dict().items() if tensor.is_meta)
    lacking = sorted(map(str, {*info["missing_keys"], *unset}))
    if lacking:
        raise DirectAlignError(
            f"{folder}: the weights lack {lacking[0]}, in all {len(lacking)} tensors of a "
            f"{kind.__name__}: take the weights that belong to config.json, or copy the folder "
            "again"
        )
    left = sorted(map(str, info["unexpected_keys"])) if name == "torch_dtype" else []
    if left:  # transformers leaves out what another task needs
        raise DirectAlignError(
            f"{folder}: config.json has no place for {left[0]}, in all {len(left)} tensors: take "
            "the config that belongs to the weights, or copy the folder again"
        )
    check_weights(model.state_dict(), folder)
    return model.requires_grad_(False).eval()


def _settings(folder: Path) -> dict[str, Any]:
    """Of config.json; empty if there is none, or no JSON (which the library says better)."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def model_type(folder: Path) -> str:
    """`model_type` of a folder's config.json; empty if there is none."""
    return str(_settings(folder).get("model_type", ""))


def contents(folder: Path) -> str:
    """What a folder holds that was given in the place of another, in words for an error."""
    names = sorted(file.name for file in folder.iterdir())
    files = {Path(name).suffix.lower() for name in names}
    if "model_index.json" in names:
        return "a diffusers pipeline, for model.path"
    if "run.yaml" in names:
        return "a run of directalign, for directalign sample and export"
    if "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        return "a LoRA, which is no model of its own"
    if "config.json" in names:
        settings = _settings(folder)
        if "_class_name" in settings:
            return f"a {settings['_class_name']}, one part of a pipeline, whose folder is above it"
        return f"a transformers model of type {settings.get('model_type')}"
    if files & {".png", ".jpg", ".jpeg", ".webp"}:
        return "images, for data.images"
    return f"{', '.join(names[:3])} and no configs" if names else "nothing"
