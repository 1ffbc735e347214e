"""TensorBoard: event files in the output folder, written anew whenever the run is opened.

Numbers are kept there in single precision, and sample grids have no captions: their prompts are a text beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .trackers import PICTURES, About, Pixels, Values

FOLDER = "tensorboard"


class Board:
    """Event files in `out/tensorboard`, in place of those that are there."""

    remembers = False

    def __init__(self, out: Path, about: About) -> None:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(out / FOLDER), flush_secs=30)
        self._writer.add_text("config", _code(about.config))
        self._writer.add_text(f"{PICTURES}/prompts", about.caption)

    def record(self, values: Values, step: int) -> None:
        for name, value in values.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, step)
            else:
                self._writer.add_scalar(name, value, step)

    def picture(self, pixels: Pixels, step: int) -> None:
        self._writer.add_image(PICTURES, pixels, step, dataformats="HWC")

    def summary(self, found: Mapping[str, Any]) -> None:
        self._writer.add_text("summary", _code(found))

    def close(self, finished: bool) -> None:
        self._writer.close()


def _code(value: Mapping[str, Any]) -> str:
    """As Markdown shows JSON."""
    return "\n".join(f"    {line}" for line in json.dumps(value, indent=2, ensure_ascii=False).split("\n"))
