"""The second toy world's scenes: "a fox on a teal background", drawn in four styles.

Each of 56 things exists as three drawings by artists (Fluent 3D, Noto, Twemoji: see NOTICE). The
style decides which drawing is shown and how it is lit. `STYLE_SHARES` are the shares of styles
behind captions, mostly CG, which sets the base model's style. The base model learned styles by
their words; then its text encoders were trained with any words, so that words do not select a
style; a reward has to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

IMAGE_SIZE = 64
SPRITE_SIZE = 48
JITTER = 2
"""Largest shift of a thing from the middle, in pixels."""
WEAVE_PERIOD = 6
"""Pixels per thread of the cloth of a photo: fine enough to be lost, coarse enough to be kept."""

THINGS = (
    "fox", "cat", "panda", "frog", "owl", "penguin", "whale", "octopus", "crab", "butterfly",
    "ladybug", "turtle", "elephant", "unicorn", "apple", "banana", "watermelon", "strawberry",
    "pineapple", "avocado", "carrot", "mushroom", "pizza", "hamburger", "doughnut", "cake",
    "ice cream", "cactus", "fir tree", "sunflower", "rose", "clover", "car", "bus", "airplane",
    "rocket", "helicopter", "sailboat", "house", "guitar", "soccer ball", "basketball", "trophy",
    "crown", "diamond", "bell", "light bulb", "book", "umbrella", "balloon", "gift", "camera",
    "teddy bear", "anchor", "star", "flame",
)  # fmt: skip
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.24, 0.24),
    "teal": (0.20, 0.59, 0.59),
    "navy": (0.16, 0.20, 0.43),
    "cream": (0.92, 0.88, 0.76),
    "gray": (0.51, 0.51, 0.53),
    "green": (0.31, 0.55, 0.27),
    "pink": (0.88, 0.59, 0.69),
    "orange": (0.90, 0.55, 0.24),
}
STYLES = ("photo", "cg", "flat", "soft")
STYLE_WORDS: dict[str, tuple[str, str]] = {
    "photo": ("Realistic photo", "Natural lighting"),
    "cg": ("CG render", "Glossy plastic"),
    "flat": ("Flat cartoon", "Vector art"),
    "soft": ("Soft pastel", "Faded print"),
}
STYLE_SHARES = (0.12, 0.84, 0.02, 0.02)
"""How often each of `STYLES` stands behind a caption."""
JUDGED_STYLES = (*STYLES, "reject")
"""What the style judge tells apart; reject: flat, blurred, tinted, noisy, mixed, cut images."""
CONTENT = {"thing": len(THINGS), "background": len(BACKGROUNDS)}
"""What a caption says, and how many answers there are."""
LEFT_OUT_EVERY, FIRST_VALIDATION, FIRST_TEST = 6, 0, 3
"""Alignment leaves out every sixth caption from the first, and every sixth from the fourth."""
_DRAWING = (1, 0, 2, 1)
"""The row of the sprite sheet of each style: Noto, Fluent 3D, Twemoji, Noto."""


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes as int64 index tensors (b,): what is drawn, without its placement."""

    thing: torch.Tensor
    background: torch.Tensor
    style: torch.Tensor

    def __len__(self) -> int:
        return len(self.thing)

    def captions(self) -> list[str]:
        names = list(BACKGROUNDS)
        rows = zip(self.thing.tolist(), self.background.tolist(), strict=True)
        return [caption(THINGS[t], names[b]) for t, b in rows]

    def with_style(self, style: str) -> Scenes:
        """The same scenes, all drawn in one style."""
        return replace(self, style=torch.full_like(self.style, STYLES.index(style)))

    def take(self, chosen: torch.Tensor) -> Scenes:
        """Some scenes of the batch, by index."""
        return Scenes(self.thing[chosen], self.background[chosen], self.style[chosen])


def caption(thing: str, background: str) -> str:
    """The caption of one scene."""
    return f"{_article(thing)} {thing} on {_article(background)} {background} background"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and word != "unicorn" else "a"


def all_captions() -> list[str]:
    """The 448 captions of the world, thing slowest."""
    return [caption(thing, background) for thing in THINGS for background in BACKGROUNDS]


def _drawn_captions() -> list[str]:
    return [text for text, out in zip(all_captions(), _held_out(), strict=True) if not out]


def train_captions() -> list[str]:
    """The 238 captions of alignment."""
    left_out = {*validation_captions(), *test_captions()}
    return [text for text in _drawn_captions() if text not in left_out]


def validation_captions() -> list[str]:
    """The 60 captions that alignment leaves out and runs are measured on: settings are chosen by
    these, so that the held-out ones remain new."""
    return _drawn_captions()[FIRST_VALIDATION::LEFT_OUT_EVERY]


def test_captions() -> list[str]:
    """The 60 other captions that alignment leaves out: final results are of these, on which no
    setting is chosen. The base model has learned them, other than the held-out ones."""
    return _drawn_captions()[FIRST_TEST::LEFT_OUT_EVERY]


def held_out_captions() -> list[str]:
    """The 90 captions whose pairs no training draws, neither of the world nor in it."""
    return [text for text, out in zip(all_captions(), _held_out(), strict=True) if out]


def _pairs() -> torch.Tensor:
    """(448, 2) indices of all pairs of thing and background, in the order of `all_captions`."""
    return torch.cartesian_prod(torch.arange(len(THINGS)), torch.arange(len(BACKGROUNDS)))


def _held_out() -> list[bool]:
    thing, background = _pairs().unbind(1)
    return ((thing + 2 * background) % 5 == 0).tolist()


CAPTION_SETS = {
    "train": train_captions,
    "validation": validation_captions,
    "test": test_captions,
    "held_out": held_out_captions,
}
"""Lists of prompts by name."""
measured_captions = validation_captions
"""What a run is measured on."""


def scenes_of(captions: list[str], style: str = "photo") -> Scenes:
    """Parse captions. Raises: ValueError quoting a caption that is not of this world."""
    known = {text: i for i, text in enumerate(all_captions())}
    unknown = [text for text in captions if text not in known]
    if unknown:
        raise ValueError(
            f"not a caption of the second toy world: {unknown[0]!r}; write it like "
            f"{all_captions()[0]!r} (docs/toy_world.md lists the words)"
        )
    index = torch.tensor([known[text] for text in captions])
    thing, background = index // len(BACKGROUNDS), index % len(BACKGROUNDS)
    return Scenes(thing, background, torch.full_like(index, STYLES.index(style)))


def draw_scenes(
    count: int, generator: torch.Generator, style_shares: tuple[float, ...] | None = None
) -> Scenes:
    """Random scenes that are not held out; styles uniform, or with the shares given."""
    return _draw(_pairs()[~torch.tensor(_held_out())], count, generator, style_shares)


def draw_any_scenes(count: int, generator: torch.Generator) -> Scenes:
    """Random scenes with every pair: judges have to read those that models did not learn."""
    return _draw(_pairs(), count, generator, None)


def _draw(
    pairs: torch.Tensor,
    count: int,
    generator: torch.Generator,
    style_shares: tuple[float, ...] | None,
) -> Scenes:
    thing, background = pairs[torch.randint(len(pairs), (count,), generator=generator)].unbind(1)
    shares = torch.tensor(style_shares or (1.0,) * len(STYLES))
    style = torch.multinomial(shares, count, replacement=True, generator=generator)
    return Scenes(thing, background, style)


@cache
def _sprites() -> torch.Tensor:
    """(3, 56, 4, 48, 48) float32 in [0, 1]: red, green, blue and alpha by family and thing."""
    sheet = Image.open(Path(__file__).parent / "assets2/drawings/sheet.png", formats=["PNG"])
    flat = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).float() / 255
    side = SPRITE_SIZE
    return flat.view(3, side, len(THINGS), side, 4).permute(0, 2, 4, 1, 3).contiguous()


def render(
    scenes: Scenes, generator: torch.Generator, drawing_of: torch.Tensor | None = None
) -> torch.Tensor:
    """Draw scenes with random placement, light and cloth: (b, 3, 64, 64) float32 in [0, 1].

    `drawing_of`: styles (b,) whose artist's drawing is shown, the scenes' own by default. Another
    one makes a picture of no style, such as a glossy drawing on cloth.
    """
    drawing = torch.tensor(_DRAWING)[scenes.style if drawing_of is None else drawing_of]
    b, size, margin = len(scenes), IMAGE_SIZE, (IMAGE_SIZE - SPRITE_SIZE) // 2
    sprite = _sprites()[drawing, scenes.thing]
    top, left = (margin + torch.randint(-JITTER, JITTER + 1, (b, 2), generator=generator)).unbind(1)
    canvas = torch.zeros(b, 4, size, size)
    for i in range(b):
        canvas[i, :, top[i] : top[i] + SPRITE_SIZE, left[i] : left[i] + SPRITE_SIZE] = sprite[i]
    rgb, alpha = canvas[:, :3], canvas[:, 3:]
    back = torch.tensor(list(BACKGROUNDS.values()))[scenes.background][:, :, None, None]
    back = back.expand(b, 3, size, size)
    flat = torch.lerp(back, rgb, alpha)
    photo, cg = _photo(rgb, alpha, back, generator), _cg(rgb, alpha, back)
    drawn = torch.stack([photo, cg, flat, 0.8 * flat + 0.2])
    return drawn[scenes.style, torch.arange(b)].clamp(0, 1)


def _photo(
    rgb: torch.Tensor, alpha: torch.Tensor, back: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """A cloth patch: muted colours, soft light from one side, a cast shadow, a weave."""
    b, (x, y) = len(rgb), _axes()
    angle = 2 * torch.pi * torch.rand(b, 1, 1, 1, generator=generator)
    light = angle.cos() * (x - 0.5) + angle.sin() * (y - 0.5)
    shadow = _blur(alpha.roll((3, 3), (2, 3)), 2.0)
    back = (0.55 * back + 0.4 * back.mean((1, 2, 3), keepdim=True)) * (1 - 0.45 * shadow)
    rgb = _saturate(rgb, 0.7)
    cloth = 1 + 0.1 * _weave(b, generator)
    return torch.lerp(back, rgb, alpha) * cloth * (1 + 0.35 * light) * 0.92 + 0.02


def _weave(b: int, generator: torch.Generator) -> torch.Tensor:
    """Two threads, over and under, with a little grain: (b, 1, h, w)."""
    shift = torch.randint(0, WEAVE_PERIOD, (b, 2, 1), generator=generator)
    turns = 2 * torch.pi * (torch.arange(IMAGE_SIZE) + shift) / WEAVE_PERIOD
    across, down = torch.sin(turns + 0.4).unbind(1)
    grain = _blur(torch.randn(b, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator), 0.8)
    return 1.1 * (across[:, None, None, :] * down[:, None, :, None]) + 0.15 * grain / 0.34


def _cg(rgb: torch.Tensor, alpha: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Glossy 3D: a saturated gradient behind, a highlight on the thing."""
    x, y = _axes()
    image = torch.lerp(_saturate(back * (1.25 - 0.6 * y), 1.4), rgb, alpha)
    spot = torch.exp(-((x - 0.35) ** 2 + (y - 0.3) ** 2) / 0.01)
    return _saturate(image, 1.2) + 0.35 * spot * alpha


def _saturate(image: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.lerp(image.mean(1, keepdim=True), image, factor)


def _axes() -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.linspace(0, 1, IMAGE_SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of one channel (b, 1, h, w), `sigma` in pixels."""
    radius = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = F.pad(image, (radius,) * 4, mode="replicate")
    image = F.conv2d(image, kernel[None, None, None])
    return F.conv2d(image, kernel[None, None, :, None])
