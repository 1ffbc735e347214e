"""Sample grids on fixed prompts and fixed seeds: what changes from one grid to the next is the model alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from .. import config
from ..evaluate.generate import generate
from ..interfaces import ALONE, Family, Together
from ..types import Images
from .sealed import partial_of, write_text

NUM_SAMPLES = 8
COLUMNS = 4


def grid(family: Family, run: config.Run, prompts: Sequence[str], together: Together = ALONE) -> Images:
    """(1, 3, rows·H, columns·W) in [0, 1], on the CPU: the prompts in order, with seeds 0, 1, 2, ... whatever the run's own seed."""
    return tiled(generate(family, prompts, range(len(prompts)), run.rollout, run.evaluate.batch_size, together))


def tiled(images: Sequence[Tensor] | Tensor) -> Images:
    """Images (3, H, W) side by side, `COLUMNS` a row, the last row filled up with white."""
    columns = min(COLUMNS, len(images))
    blanks = [torch.ones_like(images[0])] * (-len(images) % columns)
    cells = [*images, *blanks]
    rows = [torch.cat(cells[start : start + columns], dim=2) for start in range(0, len(cells), columns)]
    return torch.cat(rows, dim=1)[None]


def path_of(out: Path, step: int) -> Path:
    """`samples/step-000040.png` for step 40."""
    return out / "samples" / f"step-{step:06d}.png"


def describe(out: Path, prompts: Sequence[str]) -> None:
    """Write `samples/samples.json`: which prompt and seed each cell of the grids has, row by row."""
    (out / "samples").mkdir(exist_ok=True)
    told = {"prompts": list(prompts), "seeds": list(range(len(prompts))), "columns": COLUMNS}
    write_text(out / "samples" / "samples.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n")


def save(picture: Images, file: Path) -> None:
    """Write a grid as PNG, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(file)
    Image.fromarray(pixels_of(picture)).save(partial, format="PNG")
    partial.replace(file)


def pixels_of(picture: Images) -> UInt8[np.ndarray, "H W 3"]:
    """A grid as eight-bit levels."""
    return (picture[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def load(file: Path) -> Images:
    """A grid that `save` wrote."""
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 255
