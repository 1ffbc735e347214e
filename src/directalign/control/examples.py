"""Wanted and unwanted images with their captions: renders of the embedded world, or two folders side by side.

In the world both sides are the same fresh scenes, drawn from one seed in two styles, so that they differ in style alone. In a folder
they are paired where the file names of the two sides match. Sets from the hub are left out: `images.scan_images` reads those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from jaxtyping import Float
from torch import Tensor

from ..images import ImageSet, scan_images
from ..order import permutation
from ..types import DirectAlignError, Images
from ..world.scenes import IMAGE_SIZE, STYLES, Scenes, draw_scenes, render

WORLD = "world"
REST = "rest"
WORLD_COUNT = 96
"""Scenes of the world that are drawn when no number is given."""
LARGEST = 512
"""Pixels of a side, at most, when no size is given."""
SIDES = ("wanted", "unwanted")


@dataclass(frozen=True)
class Examples:
    """Images in [0, 1] of one size, with the caption of each; `paired`: same index, same content."""

    wanted: Images
    unwanted: Float[Tensor, "c 3 H W"]
    wanted_prompts: tuple[str, ...]
    unwanted_prompts: tuple[str, ...]
    paired: bool


def load_examples(path: str, key: str, size: tuple[int, int] | None = None, count: int | None = None, seed: int = 0) -> Examples:
    """Examples from `path`, at most `count` a side, drawn by `seed`.

    Args:
        path: "world:photo/cg" (two of the world's styles), "world:photo/rest" (against the three others in turn), "world" for the
            latter, or a folder with `wanted/` and `unwanted/`, each with captions as `images` reads them.
        key: the option or setting that errors blame.
        size: (height, width) in pixels, images are cropped and resized to it. None takes the world's own, or in a folder the
            square of the shortest side that occurs, 512 at most.
        count: None takes 96 scenes of the world, or all images of a folder.

    Raises:
        DirectAlignError: styles that the world lacks, a side that is missing or empty, an image without caption or that cannot be read.
    """
    if count is not None and count < 1:
        raise DirectAlignError(f"{key}: {count} images a side; give at least 1, or none for all")
    if path == WORLD or path.startswith(f"{WORLD}:"):
        return _drawn(*_styles(path, key), size or (IMAGE_SIZE, IMAGE_SIZE), count or WORLD_COUNT, seed)
    return _read(Path(path), key, size, count, seed)


# --- the world ----------------------------------------------------------------------------------------------------------


def _styles(path: str, key: str) -> tuple[str, tuple[str, ...]]:
    """The wanted style, and the unwanted ones."""
    wanted, slash, unwanted = (path.removeprefix(WORLD).removeprefix(":") or f"{STYLES[0]}/{REST}").partition("/")
    if not slash or wanted not in STYLES or unwanted not in (*STYLES, REST) or wanted == unwanted:
        raise DirectAlignError(
            f"{key}: {path}: write it as world:WANTED/UNWANTED with two different styles of {', '.join(STYLES)}, or WANTED/{REST} against all others"
        )
    return wanted, tuple(style for style in STYLES if style != wanted) if unwanted == REST else (unwanted,)


def _drawn(wanted: str, unwanted: tuple[str, ...], size: tuple[int, int], count: int, seed: int) -> Examples:
    """The same scenes, placed and lit the same, once in the wanted style and once in an unwanted one."""
    scenes = draw_scenes(count, torch.Generator().manual_seed(seed))
    others = torch.tensor([STYLES.index(unwanted[i % len(unwanted)]) for i in range(count)])
    sides = (scenes.with_style(wanted), Scenes(scenes.color, scenes.shape, scenes.background, others))
    images = [_resized(render(side, torch.Generator().manual_seed(seed + 1)), size) for side in sides]
    captions = tuple(scenes.captions())
    return Examples(images[0], images[1], captions, captions, paired=True)


def _resized(images: Images, size: tuple[int, int]) -> Float[Tensor, "b 3 rows columns"]:
    if tuple(images.shape[-2:]) == size:
        return images
    return torch.nn.functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


# --- folders ------------------------------------------------------------------------------------------------------------


def _read(folder: Path, key: str, size: tuple[int, int] | None, count: int | None, seed: int) -> Examples:
    wanted, unwanted = (_side(folder, side, key) for side in SIDES)
    places = _matched(wanted, unwanted)
    size = size or _square(wanted, unwanted)
    taken = [_taken(len(wanted), count, seed), _taken(len(unwanted), count, seed)]
    if places is not None:
        taken[1] = [places[i] for i in taken[0]]
    images = [torch.stack([side.image(i, *size) for i in chosen]) for side, chosen in zip((wanted, unwanted), taken, strict=True)]
    prompts = [tuple(side.captions[i] for i in chosen) for side, chosen in zip((wanted, unwanted), taken, strict=True)]
    return Examples(images[0], images[1], prompts[0], prompts[1], paired=places is not None)


def _side(folder: Path, side: str, key: str) -> ImageSet:
    if not (folder / side).is_dir():
        raise DirectAlignError(f"{key}: {folder}: no folder {side}/ in it; give a folder with wanted/ and unwanted/, or world")
    found = scan_images(folder / side)
    if found.skipped:
        raise DirectAlignError(f"{key}: {folder / side}: {found.skipped[0]}; mend or remove it ({len(found.skipped)} such)")
    return found


def _matched(wanted: ImageSet, unwanted: ImageSet) -> list[int] | None:
    """For each wanted image the unwanted one of the same name, ending aside; None unless all names match."""
    names = [[str(PurePath(name).with_suffix("")) for name in side.names] for side in (wanted, unwanted)]
    if len(set(names[0])) != len(names[0]) or sorted(names[0]) != sorted(names[1]):
        return None
    return [names[1].index(name) for name in names[0]]


def _square(*sides: ImageSet) -> tuple[int, int]:
    shortest = min(LARGEST, *(min(size) for side in sides for size in side.sizes))
    return shortest, shortest


def _taken(length: int, count: int | None, seed: int) -> list[int]:
    """All in their own order, or `count` of them."""
    return list(range(length)) if count is None or count >= length else sorted(permutation(length, seed, 0, "examples")[:count])
