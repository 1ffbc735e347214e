"""Figures: width, size, the colour of every arm, equal bytes."""

from pathlib import Path

import numpy as np
from PIL import Image

from experiments import plots
from experiments.plots import STYLES, DotColumn, Line, Panel, Point

ARMS = [name for name in STYLES if name != "base"]


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
