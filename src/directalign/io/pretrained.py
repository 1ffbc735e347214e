"""Read networks, configs and tokenizers of a folder without running Python that lies in it."""

from __future__ import annotations

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
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = [settings.get(key) for key in KERNELS] if isinstance(settings, dict) else []
    if any("/" in str(name) for name in named):
        raise DirectAlignError(f"{file}: {NEVER_RUN}")
    if kind.__module__.startswith("transformers."):  # diffusers runs none for a class
        options["trust_remote_code"] = False
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise DirectAlignError(f"{folder}: {NEVER_RUN}") from error
