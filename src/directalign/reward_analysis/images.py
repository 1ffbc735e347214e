"""Wanted and unwanted example images, and the image changes that probe a reward for bias.

Examples are toy-world renders or two folders. In the toy world both sides show the same scenes in
two styles, so only the style differs. The sides of two folders are paired if all their file names
match and each pair has one caption.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..config.base import MAX_SEED
from ..data import captions
from ..data.image_dataset import ENDINGS, ImageSet, in_folder, scan_images
from ..data.shuffle import permutation
from ..device import default_device
from ..toyworld.worlds import WORLDS, World
from ..types import DirectAlignError, Images

logger = logging.getLogger(__name__)

Sides = tuple[str, str]
"""The folder of wanted and that of unwanted images."""
REST = "rest"
TOY_WORLD_COUNT = 96
"""Toy-world scenes if no count is given."""
HELD_OUT = 0.25
"""Share of the captions that are held out from a fit."""
MAX_SIDE = 512
"""Maximum pixels per side of a folder's images."""


@dataclass(frozen=True)
class Examples:
    """Images in [0, 1] of one size with captions; `paired`: equal index means equal content."""

    wanted: Images
    unwanted: Float[Tensor, "c 3 H W"]
    wanted_prompts: tuple[str, ...]
    unwanted_prompts: tuple[str, ...]
    paired: bool

    @property
    def sides(
        self,
    ) -> tuple[tuple[Images, tuple[str, ...]], tuple[Float[Tensor, "c 3 H W"], tuple[str, ...]]]:
        """((wanted images, captions), (unwanted images, captions))."""
        return (self.wanted, self.wanted_prompts), (self.unwanted, self.unwanted_prompts)


def load_examples(
    source: str | Sides,
    key: str,
    count: int | None = None,
    seed: int = 0,
    caption: str = captions.NONE,
) -> Examples:
    """Load examples from `source`, at most `count` per side, drawn with `seed`.

    Images have a toy world's size, or for folders that of the square of the shortest side that
    occurs, at most 512.

    Args:
        source: "world:photo/cg" (two styles of a toy world), "world:photo/rest" (against the three
            other styles in turn), "world" (same as the latter; world2 alike), a folder with
            `wanted/` and `unwanted/`, or two folders. Images are captioned as
            `image_dataset.in_folder` reads them.
        key: option or config key for error messages about one source; two folders are --wanted and
            --unwanted.
        count: None: 96 toy-world scenes, or all images of a folder.
        caption: makes the captions of images that have none, in files beside them: see
            `captions.write_captions`; "none" refuses such images.

    Raises:
        DirectAlignError: unknown styles, a missing or empty side, an image without caption or one
            that cannot be decoded.
    """
    if count is not None and count < 1:
        raise DirectAlignError(f"{key}: {count} images per side; give 1 or more, or omit it")
    keys = "--wanted", "--unwanted"
    if isinstance(source, str):
        name, _, styles = source.partition(":")
        if name in WORLDS:
            world = WORLDS[name]
            scenes = count or TOY_WORLD_COUNT
            return _render_pairs(world, *_styles(world, styles, key), scenes, seed)
        source, keys = (str(Path(source, "wanted")), str(Path(source, "unwanted"))), (key, key)
    return _read_folders(source, keys, count, seed, caption)


def source_text(source: str | Sides) -> str:
    """A source of examples in one line, for records."""
    return source if isinstance(source, str) else " and ".join(source)


def _styles(world: World, text: str, key: str) -> tuple[str, tuple[str, ...]]:
    """The wanted style and the unwanted styles."""
    styles = world.scenes.STYLES
    wanted, slash, unwanted = (text or f"{styles[0]}/{REST}").partition("/")
    known = wanted in styles and unwanted in (*styles, REST)
    if not slash or not known or wanted == unwanted:
        raise DirectAlignError(
            f"{key}: {world.name}:{text}: write it as {world.name}:WANTED/UNWANTED with two "
            f"different styles of {', '.join(styles)}, or WANTED/{REST} against all others"
        )
    rest = tuple(style for style in styles if style != wanted)
    return wanted, rest if unwanted == REST else (unwanted,)


def _render_pairs(
    world: World, wanted: str, unwanted: tuple[str, ...], count: int, seed: int
) -> Examples:
    """Render the same scenes, with the same layout and light, in the wanted and unwanted styles."""
    drawn = world.scenes
    scenes = drawn.draw_scenes(count, torch.Generator().manual_seed(seed))
    others = [drawn.STYLES.index(unwanted[i % len(unwanted)]) for i in range(count)]
    light = (seed + 1) % (MAX_SEED + 1)
    first, second = (
        drawn.render(side, torch.Generator().manual_seed(light))
        for side in (scenes.with_style(wanted), replace(scenes, style=torch.tensor(others)))
    )
    captions = tuple(scenes.captions())
    return Examples(first, second, captions, captions, paired=True)


def _read_folders(
    folders: Sides, keys: Sides, count: int | None, seed: int, caption: str
) -> Examples:
    named = list(zip(map(Path, folders), keys, strict=True))
    for folder, key in named:
        if not folder.is_dir():
            raise DirectAlignError(
                f"{key}: no folder {folder}; give a folder with wanted/ and unwanted/, two folders "
                "with --wanted and --unwanted, or world"
            )
    if named[0][0].resolve() == named[1][0].resolve():
        raise DirectAlignError(f"{keys[1]} {folders[1]}: holds the wanted images; give another one")
    for folder, key in named:
        if not in_folder(folder).entries:
            endings = ", ".join(sorted(ENDINGS))
            raise DirectAlignError(f"{key}: {folder}: no images: none ends in {endings}")
    sides = [_scan_side(folder, key, caption) for folder, key in named]
    size = min(MAX_SIDE, *(min(each) for side in sides for each in side.sizes))
    chosen = [sorted(permutation(len(side), seed, 0, "examples")[:count]) for side in sides]
    matches = _matches(", ".join(dict.fromkeys(keys)), *sides)
    if matches is not None:
        chosen[1] = [matches[i] for i in chosen[0]]
    each = list(zip(sides, chosen, strict=True))
    images = [torch.stack([side.image(i, size, size) for i in indices]) for side, indices in each]
    prompts = [tuple(side.captions[i] for i in indices) for side, indices in each]
    return Examples(images[0], images[1], prompts[0], prompts[1], paired=matches is not None)


def _scan_side(folder: Path, key: str, caption: str) -> ImageSet:
    missing = [each for each in in_folder(folder).entries if each.caption_file is not None]
    if missing and caption == captions.NONE:
        raise DirectAlignError(
            f"{key}: {folder}: {missing[0].name}: {missing[0].fault} ({len(missing)} such); write "
            "it, or let --caption blip make what is missing"
        )
    if missing:
        captions.write_captions(folder, caption, "--caption", default_device())
    found = scan_images(folder)
    if found.skipped:
        raise DirectAlignError(
            f"{key}: {folder}: {found.skipped[0]}; repair or remove it ({len(found.skipped)} such)"
        )
    return found


def _matches(key: str, wanted: ImageSet, unwanted: ImageSet) -> list[int] | None:
    """Unwanted index for each wanted image; None unless all names match, and their captions too.

    Pairs are compared as equal content, which other captions contradict. One line says why there
    are none.
    """
    first, second = (
        [str(PurePath(name).with_suffix("")) for name in side.names] for side in (wanted, unwanted)
    )
    if len(set(first)) != len(first) or sorted(first) != sorted(second):
        shared = len(set(first) & set(second))
        why = f"{shared} names are on both sides, of {len(first)} and {len(second)} images"
    else:
        matches = [second.index(name) for name in first]
        pairs = enumerate(matches)
        differ = [(i, j) for i, j in pairs if wanted.captions[i] != unwanted.captions[j]]
        if not differ:
            return matches
        mine, other = (
            Path(s.where, s.names[i]) for s, i in zip((wanted, unwanted), differ[0], strict=True)
        )
        why = f"{len(differ)} of {len(first)} images of one name have different captions "
        why += f"({mine}, {other})"
    logger.warning(
        f"{key}: {wanted.where}, {unwanted.where}: {why}, so the sides are compared without pairs, "
        "which need equal names and captions"
    )
    return None


def split_by_caption(
    sides: Sequence[Sequence[str]], seed: int, stream: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Indices per side to train on and to hold out: no caption is in both parts.

    Raises: DirectAlignError if a part has fewer than two captions of a side.
    """
    captions = sorted({caption for side in sides for caption in side})
    order = permutation(len(captions), seed, 0, stream)
    drawn = {captions[i] for i in order[: max(2, round(HELD_OUT * len(captions)))]}
    train, held_out = (
        [[i for i, caption in enumerate(side) if (caption in drawn) == inside] for side in sides]
        for inside in (False, True)
    )
    for part in (train, held_out):
        if any(len({s[i] for i in chosen}) < 2 for s, chosen in zip(sides, part, strict=True)):
            raise DirectAlignError(
                f"--images: {len(captions)} different captions; give at least 8, the same on both "
                "sides, to train on and to hold out"
            )
    return train, held_out


def split_examples(examples: Examples, seed: int, stream: str) -> tuple[Examples, Examples]:
    """(train, held out) by captions; see `split_by_caption`."""
    parts = []
    for chosen in split_by_caption([prompts for _, prompts in examples.sides], seed, stream):
        (wanted, wanted_prompts), (unwanted, unwanted_prompts) = (
            (images[indices], tuple(prompts[i] for i in indices))
            for (images, prompts), indices in zip(examples.sides, chosen, strict=True)
        )
        parts.append(Examples(wanted, unwanted, wanted_prompts, unwanted_prompts, examples.paired))
    return parts[0], parts[1]


# --- bias probes: fixed changes for measuring -----------------------------------------------------
# No control phrase names them and rewards are known to favour them. arXiv 2509.06942 names red
# (HPSv2), purple (PickScore), over-exposure (ImageReward) and smoothness (all).

TINT, SATURATION, EDGES, BLUR = 0.1, 1.5, 1.0, 64
"""Added to a channel; color factor; detail added; shorter side / blur window."""


def tinted(images: Images, cast: tuple[float, float, float]) -> Images:
    """Add a cast of strength `TINT`; brightness is unchanged if `cast` sums to 0."""
    return (images + TINT * torch.tensor(cast, device=images.device)[:, None, None]).clamp(0, 1)


def saturated(images: Images) -> Images:
    """Multiply each pixel's distance from gray by `SATURATION`."""
    return torch.lerp(images.mean(1, keepdim=True), images, SATURATION).clamp(0, 1)


def blurred(images: Images) -> Images:
    """Box blur over 1/64 of the shorter side, at least 3 pixels."""
    side = max(3, min(images.shape[-2:]) // BLUR // 2 * 2 + 1)
    padded = F.pad(images, (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side, stride=1)


def sharpened(images: Images) -> Images:
    """Add the detail that the blur removes."""
    return (images + EDGES * (images - blurred(images))).clamp(0, 1)


PROBES: dict[str, Callable[[Images], Images]] = {
    "red tint": partial(tinted, cast=(1.0, -0.5, -0.5)),
    "purple tint": partial(tinted, cast=(0.5, -1.0, 0.5)),
    "green tint": partial(tinted, cast=(-0.5, 1.0, -0.5)),
    "brightness": partial(tinted, cast=(1.0, 1.0, 1.0)),
    "saturation": saturated,
    "blur": blurred,
    "sharpening": sharpened,
}

CAST = 0.1
"""Maximum length of a random color cast."""


def random_cast(images: Images, generator: torch.Generator, light: float = 0.0) -> Images:
    """Augment for finetuning: a random zero-sum color cast and a gain in 1 ± `light` per image."""
    b = len(images)
    hue = torch.randn(b, 3, generator=generator)
    hue = F.normalize(hue - hue.mean(1, keepdim=True), dim=1) * CAST
    hue = (hue * torch.rand(b, 1, generator=generator))[:, :, None, None].to(images)
    gain = 1 + light * (2 * torch.rand(b, 1, generator=generator) - 1)
    return (images * gain[:, :, None, None].to(images) + hue).clamp(0, 1)
