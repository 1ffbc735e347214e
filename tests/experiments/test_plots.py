"""Figures: width, size, equal bytes; labels do not overlap, colours stay distinguishable."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import plots
from experiments.plots import STYLES, DotColumn, Line, Panel, Point, styles_of

ARMS = [name for name in STYLES if name != "base"]
EYES = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
"""Machado et al. 2009, severity 1."""


def interval(value: float, half: float | None = 0.04) -> dict[str, float | int | None]:
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "n": 5}


def shows_all(file: Path) -> bool:
    """Whether the figure has the usual width and the colour of every arm."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    colors = [bytes.fromhex(STYLES[name].color[1:]) for name in ARMS]
    seen = [(abs(pixels - np.array([*color])).max(-1) <= 4).sum() >= 12 for color in colors]
    return pixels.shape[1] == 1248 and all(seen)


def test_figures_show_all_arms_and_equal_numbers_give_equal_files(tmp_path):
    lines = []
    for place, name in enumerate(ARMS):
        y = [0.1 + 0.01 * place, 0.3 + 0.02 * place, 0.4 + 0.04 * place]
        band = [value - 0.05 for value in y], [value + 0.05 for value in y]
        lines.append(Line(name, [1, 10, 100], y, *band))
    look = {"percent": True, "log_x": True, "named": False, "span_y": (0, 1)}
    by_nfe = Panel("by NFE", "NFE", "photo rate", lines, **look)
    panels = [by_nfe, Panel("by updates", "updates", "", lines)]
    files = [
        plots.curves(tmp_path / name, "Costs", panels, "five seeds") for name in ("a.png", "b.png")
    ]
    assert shows_all(files[0]) and files[0].stat().st_size < 150_000
    assert files[0].read_bytes() == files[1].read_bytes()
    values = {name: interval(0.2 + 0.05 * place) for place, name in enumerate(ARMS)}
    values[ARMS[2]] = interval(0.3, None)
    columns = [DotColumn("photo rate", values, percent=True, at=0.11)]
    columns.append(DotColumn("cost", {**values, "refl": None}, log=True))
    assert shows_all(plots.dots_with_intervals(tmp_path / "dots.png", "All arms", columns))
    trail, drift = [(0.1, 0.02), (0.2, 0.04)], interval(0.05, 0.01)
    points = [Point(name, value, drift, trail) for name, value in values.items()]
    assert shows_all(plots.plane(tmp_path / "plane.png", "All arms", "photo rate", "drift", points))


def lab(color: str, eye: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour for an eye, white point D65."""
    encoded = np.array([*bytes.fromhex(color[1:])]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(eye @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_colours_stay_apart_for_every_eye(eye):
    for colors in ([style.color for style in STYLES.values()], plots.OTHER_COLORS):
        pairs = combinations([lab(color, EYES[eye]) for color in colors], 2)
        assert min(np.linalg.norm(one - other) for one, other in pairs) > 18


def test_every_arm_has_a_marker_a_readable_name_and_its_own_title():
    assert len({STYLES[name].marker for name in ARMS}) == len(ARMS)
    names = ["srpo", "early_window", "late"]
    found = styles_of(names, {"late": "late window", "srpo": "SRPO, ours"})
    titles = [style.title for style in found.values()]
    assert titles == ["SRPO, ours", "early window", "late window"]
    assert found["srpo"].color == STYLES["srpo"].color and found["early_window"] != found["late"]
    for style in [*STYLES.values(), *found.values()]:
        lightness = lab(style.ink, EYES["normal"])[0]
        assert 1.05 / (((lightness + 16) / 116) ** 3 + 0.05) > 4.4, "contrast on white"
