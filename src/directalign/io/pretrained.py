"""Read networks, configs and tokenizers of a folder without running Python that lies in it."""

import json
from pathlib import Path
from typing import Any

from ..types import DirectAlignError

NEVER_RUN = (
    "asks for Python that is not part of the library, which is never run: give the model as the "
    "library's own classes save it"
)
KERNELS = ("attn_implementation", "experts_implementation")
"""Settings that may name a repository of kernels, which the library would download and run."""


def from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained` on the files of a folder; nothing is downloaded, unpickled or asked.

    Raises DirectAlignError for a folder that names code of its own (auto_map, kernels) without
    which it cannot be read; else what the library raises.
    """
    settings = _settings(folder)
    if any("/" in str(settings.get(key)) for key in KERNELS):
        raise DirectAlignError(f"{folder / 'config.json'}: {NEVER_RUN}")
    if kind.__module__.startswith("transformers."):  # diffusers runs none for a class
        options["trust_remote_code"] = False
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise DirectAlignError(f"{folder}: {NEVER_RUN}") from error


def _settings(folder: Path) -> dict[str, Any]:
    """Of config.json; empty if there is none, or no JSON (which the library says better)."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
