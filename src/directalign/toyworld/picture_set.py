"""A folder of rendered images with captions, in the form in which users bring their own: NAME.png beside NAME.txt.

For offline training and its tests; captions are plain, as a user's would be.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ..types import DirectAlignError
from .scenes import STYLES, Scenes, draw_scenes, render


def write_pictures(folder: Path, count: int, style: str = "photo", seed: int = 0) -> Path:
    """Draw `count` random scenes in one of `scenes.STYLES` into an empty or new folder; the same seed, the same files."""
    if style not in STYLES:
        raise DirectAlignError(f"style {style!r} is not of the embedded world: choose {', '.join(STYLES)}")
    if count < 1:
        raise DirectAlignError(f"count {count}: ask for at least one picture")
    if folder.exists() and any(folder.iterdir()):
        raise DirectAlignError(f"{folder} is not empty: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    scenes: Scenes = draw_scenes(count, generator).with_style(style)
    pixels = (render(scenes, generator).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    for index, (caption, picture) in enumerate(zip(scenes.captions(), pixels, strict=True)):
        Image.fromarray(picture).save(folder / f"{index:05d}.png")
        (folder / f"{index:05d}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder
