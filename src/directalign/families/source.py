"""Where a checkpoint's parts come from: a diffusers folder or an embedded pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import config
from ..world import assets


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    `name` is what the recipe says; `folder` a diffusers folder with every part. `single_file` holds weights that take the
    place of the folder's; `variant` names the weight files to take (fp16), None the plain ones.
    """

    name: str
    folder: Path
    single_file: Path | None = None
    variant: str | None = None


def open_source(model: config.Model) -> Source:
    """The checkpoint that a recipe names. Raises DirectAlignError for one that is not there."""
    return Source(model.path, assets.resolve(model.path), variant=model.variant)
