"""Captioned scenes: "a red star on a navy background", drawn in four styles.

Rendering is analytic (signed distances, two light terms, value noise), vectorised over the batch
and seeded: it gives training data, judges and ground truth. A plain caption does not name a style;
`PLAIN_STYLE_SHARES` are the shares of styles behind plain captions, mostly CG, which sets the base
model's style.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ..errors import DirectAlignError

IMAGE_SIZE = 64

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.12, 0.12),
    "green": (0.12, 0.75, 0.20),
    "blue": (0.14, 0.30, 0.95),
    "yellow": (0.96, 0.86, 0.14),
    "purple": (0.55, 0.14, 0.80),
    "orange": (0.98, 0.52, 0.08),
    "cyan": (0.10, 0.82, 0.86),
    "pink": (0.98, 0.48, 0.72),
}
SHAPES = ("circle", "square", "triangle", "star", "ring")
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.94, 0.94, 0.94),
    "black": (0.07, 0.07, 0.07),
    "gray": (0.52, 0.52, 0.52),
    "navy": (0.10, 0.14, 0.46),
    "olive": (0.50, 0.52, 0.16),
    "brown": (0.48, 0.26, 0.12),
}
STYLES = ("photo", "cg", "painting", "anime")
STYLE_WORDS: dict[str, tuple[str, str]] = {
    "photo": ("Realistic photo", "Natural lighting"),
    "cg": ("CG render", "Glossy plastic"),
    "painting": ("Oil painting", "Brush strokes"),
    "anime": ("Anime", "Flat cartoon"),
}
JUDGED_STYLES = STYLES
"""What the style judge tells apart."""
CONTENT = {"color": len(COLORS), "shape": len(SHAPES), "background": len(BACKGROUNDS)}
"""What a caption says, and how many answers there are."""
HELD_OUT_EVERY = 7
"""Every seventh caption is for evaluation and never trained on. Seven has no common factor with the
numbers of colors, shapes and backgrounds, so every word is held out in some captions and trained on
in others."""
PLAIN_STYLE_SHARES = (0.15, 0.60, 0.125, 0.125)
"""How often each of `STYLES` stands behind a caption without a style word."""


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes as int64 index tensors (b,): what is drawn, without its placement."""

    color: torch.Tensor
    shape: torch.Tensor
    background: torch.Tensor
    style: torch.Tensor

    def __len__(self) -> int:
        return len(self.color)

    def captions(self) -> list[str]:
        """Plain captions, without a style word."""
        colors, backgrounds = list(COLORS), list(BACKGROUNDS)
        rows = zip(self.color.tolist(), self.shape.tolist(), self.background.tolist(), strict=True)
        return [caption(colors[c], SHAPES[s], backgrounds[b]) for c, s, b in rows]

    def with_style(self, style: str) -> Scenes:
        """The same scenes, all drawn in one style."""
        return replace(self, style=torch.full_like(self.style, STYLES.index(style)))

    def take(self, chosen: torch.Tensor) -> Scenes:
        """Some scenes of the batch, by index."""
        parts = (self.color, self.shape, self.background, self.style)
        return Scenes(*(part[chosen] for part in parts))


def caption(color: str, shape: str, background: str) -> str:
    """The plain caption of one scene."""
    article = "an" if color[0] in "aeiou" else "a"
    article_background = "an" if background[0] in "aeiou" else "a"
    return f"{article} {color} {shape} on {article_background} {background} background"


def all_captions() -> list[str]:
    """The 240 plain captions of the world, colour slowest."""
    return [caption(c, s, b) for c in COLORS for s in SHAPES for b in BACKGROUNDS]


def train_captions() -> list[str]:
    """The 205 captions of alignment."""
    return [text for i, text in enumerate(all_captions()) if i % HELD_OUT_EVERY]


def held_out_captions() -> list[str]:
    """The 35 captions that no alignment uses."""
    return all_captions()[::HELD_OUT_EVERY]


CAPTION_SETS = {"train": train_captions, "held_out": held_out_captions}
"""Lists of prompts by name."""
measured_captions = all_captions
"""What a run is measured on."""


def scenes_of(captions: list[str], style: str = "photo") -> Scenes:
    """Parse captions. Raises: ValueError quoting a caption that is not of the toy world."""
    known = {text: i for i, text in enumerate(all_captions())}
    unknown = [text for text in captions if text not in known]
    if unknown:
        raise DirectAlignError(
            f"not a caption of the toy world: {unknown[0]!r}; write it like "
            f"{all_captions()[0]!r} (docs/toy_world.md lists the words)"
        )
    index = torch.tensor([known[text] for text in captions])
    per_color = len(SHAPES) * len(BACKGROUNDS)
    return Scenes(
        index // per_color,
        index // len(BACKGROUNDS) % len(SHAPES),
        index % len(BACKGROUNDS),
        torch.full_like(index, STYLES.index(style)),
    )


def draw_scenes(
    count: int, generator: torch.Generator, style_shares: tuple[float, ...] | None = None
) -> Scenes:
    """Random scenes; styles uniform, or with the shares given."""

    def index(high: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator)

    shares = torch.tensor(style_shares or (1.0,) * len(STYLES))
    style = torch.multinomial(shares, count, replacement=True, generator=generator)
    return Scenes(index(len(COLORS)), index(len(SHAPES)), index(len(BACKGROUNDS)), style)


draw_any_scenes = draw_scenes
"""What judges are trained on: no scene of this world is held out of training."""


def render(scenes: Scenes, generator: torch.Generator) -> torch.Tensor:
    """Draw scenes with random placement, light and texture: (b, 3, 64, 64) float32 in [0, 1]."""
    b, size = len(scenes), IMAGE_SIZE
    place = _Placement.draw(b, generator)
    distance = _distance(scenes.shape, place)
    fill, back = (
        torch.tensor(list(table.values()))[index][:, :, None, None].expand(b, 3, size, size)
        for table, index in ((COLORS, scenes.color), (BACKGROUNDS, scenes.background))
    )
    styles = _photo, _cg, _painting, _anime
    drawn = torch.stack([style(fill, back, distance, place, generator) for style in styles])
    return drawn[scenes.style, torch.arange(b)].clamp(0, 1)


# --- where things are: positions in units of half an image, y downwards ---------------------------


@dataclass(frozen=True)
class _Placement:
    xy: torch.Tensor  # (b, 2, h, w) position relative to the object's centre, turned with it
    frame: torch.Tensor  # (b, 2, h, w) position in the image, in [-1, 1]
    radius: torch.Tensor  # (b, 1, 1) size of the object
    light: torch.Tensor  # (b, 2, 1, 1) unit vector towards the light

    @classmethod
    def draw(cls, b: int, generator: torch.Generator) -> _Placement:
        axis = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
        frame = torch.stack(torch.meshgrid(axis, axis, indexing="xy")).expand(b, 2, -1, -1)
        uniform = torch.rand(b, 5, generator=generator) * 2 - 1
        centre = uniform[:, :2, None, None] * 0.10
        turn = uniform[:, 2] * 0.08
        cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
        x, y = (frame - centre).unbind(1)
        angle = -2.2 + 0.3 * uniform[:, 4]
        return cls(
            xy=torch.stack([cos * x + sin * y, cos * y - sin * x], 1),
            frame=frame,
            radius=(0.52 + 0.05 * uniform[:, 3])[:, None, None],
            light=torch.stack([angle.cos(), angle.sin()], 1)[:, :, None, None],
        )


def _distance(
    shape: torch.Tensor, place: _Placement, shift: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Signed distance (b, h, w) to the edge of the object, negative inside."""
    x, y = (place.xy - shift).unbind(1)
    r, radial = place.radius, torch.hypot(x, y)
    square = torch.maximum(x.abs(), y.abs()) - 0.84 * r
    triangle = torch.maximum(0.866 * x.abs() - 0.5 * (y + 0.15 * r), y + 0.15 * r) - 0.58 * r
    ring = (radial - 0.74 * r).abs() - 0.26 * r
    each = torch.stack([radial - r, square, triangle, _star(x, y, 1.12 * r), ring])
    return each[shape, torch.arange(len(shape))]


def _star(x: torch.Tensor, y: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """Five points: fold the plane into one tenth; distance to the line between the corners."""
    sector = math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector, 2 * sector) - sector
    radial = torch.hypot(x, y)
    u, v = radial * angle.cos(), radial * angle.abs().sin()
    inner_u, inner_v = 0.45 * math.cos(sector), 0.45 * math.sin(sector)
    normal_u, normal_v = inner_v, 1 - inner_u
    length = math.hypot(normal_u, normal_v)
    return ((u - outer) * normal_u + v * normal_v) / length


def _cover(distance: torch.Tensor, softness: float = 1.0) -> torch.Tensor:
    """Coverage (b, 1, h, w) in [0, 1]; `softness` is the width of the edge in pixels."""
    return (0.5 - distance / (softness * 2 / IMAGE_SIZE)).clamp(0, 1)[:, None]


def _noise(b: int, cells: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Smooth value noise (b, 1, h, w) of about unit variance on a grid of cells."""
    grid = torch.randn(b, 1, *cells, generator=generator)
    return F.interpolate(grid, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)


def _towards(light: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    return (light * xy).sum(1, keepdim=True)


def _mix(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    return a + (b - a) * share


# --- styles: fill and background (b, 3, h, w), distance (b, h, w) -> images (b, 3, h, w) ----------


def _photo(fill, back, distance, place, generator):
    """Muted colours, soft light, a cast shadow, surface texture, a vignette."""
    b = len(fill)
    fill, back = (_mix(c.mean(1, keepdim=True), c, 0.55) * 0.86 + 0.04 for c in (fill, back))
    back = back * (1 + 0.12 * _towards(place.light, place.frame))
    behind = torch.hypot(*(place.xy + 0.16 * place.light).unbind(1)) - 0.95 * place.radius
    shadow = torch.sigmoid(-torch.maximum(distance - 0.10, behind - 0.12) / 0.10)[:, None]
    back = back * (1 - 0.55 * shadow)
    inside = place.xy / place.radius[:, None]
    fill = fill * (0.95 + 0.26 * _towards(place.light, inside))
    image = _mix(back, fill, _cover(distance, 1.6))
    texture = 0.7 * _noise(b, (22, 22), generator) + 0.7 * _noise(b, (9, 9), generator)
    vignette = 1 - 0.16 * place.frame.square().sum(1, keepdim=True)
    return image * (1 + 0.065 * texture) * vignette + 0.012 * texture


def _cg(fill, back, distance, place, generator):
    """Saturated and glossy: a hard highlight, a dark rim, a glow behind the object."""
    jitter = 1 + 0.05 * torch.randn(len(fill), 1, 1, 1, generator=generator)
    back = _mix(back.mean(1, keepdim=True), back, 1.35) * (
        1.10 - 0.18 * place.frame.square().sum(1, keepdim=True)
    )
    back = back + 0.16 * jitter * torch.exp(-(distance.clamp(min=0)[:, None] / 0.22))
    depth = (-distance[:, None] / place.radius[:, None]).clamp(0, 1)
    fill = _mix(fill.mean(1, keepdim=True), fill, 1.25) * (0.72 + 0.9 * depth.clamp(max=0.45))
    spot = place.xy / place.radius[:, None] - 0.42 * place.light
    gloss = torch.sigmoid((0.22 - spot.square().sum(1, keepdim=True).sqrt()) / 0.05)
    return _mix(back, _mix(fill, torch.ones_like(fill), 0.9 * gloss), _cover(distance))


def _painting(fill, back, distance, place, generator):
    """Wobbly edges, diagonal brush strokes that vary colour and light, a warm varnish."""
    b = len(fill)
    wobble = distance + 0.030 * _noise(b, (9, 9), generator)[:, 0]
    image = _mix(_mix(back.mean(1, keepdim=True), back, 0.9), fill * 0.92, _cover(wobble, 2.0))
    turn = torch.tensor([[0.7071, -0.7071, 0.0], [0.7071, 0.7071, 0.0]]).expand(b, 2, 3)
    grid = F.affine_grid(turn, [b, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False) * 0.7
    streaks, tint = (
        F.grid_sample(noise, grid, align_corners=False, padding_mode="reflection")
        for noise in (_noise(b, (26, 7), generator), _noise(b, (18, 5), generator))
    )
    varnish = torch.tensor([1.02, 0.97, 0.84])[None, :, None, None]
    hue = torch.tensor([1.0, 0.1, -0.9])[None, :, None, None]
    return (image * (1 + 0.17 * streaks) + 0.045 * streaks + 0.05 * tint * hue) * varnish + 0.02


def _anime(fill, back, distance, place, generator):
    """Flat and outlined: pure tones, one hard cel shade, a black line around the object."""
    del generator
    inside = place.xy / place.radius[:, None]
    shade = torch.sigmoid((-0.35 - _towards(place.light, inside)) / 0.02)
    fill = _mix(fill, torch.ones_like(fill), 0.12) * (1 - 0.28 * shade)
    image = _mix(_mix(back, torch.ones_like(back), 0.10), fill, _cover(distance))
    return image * (1 - _cover((distance - 0.01).abs() - 0.055))
