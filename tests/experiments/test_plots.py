"""Figures are there, wide enough, small and repeatable; names keep clear of each other, and colours of confusion."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.plots import (
    OTHER_COLORS,
    STYLES,
    DotColumn,
    Line,
    Panel,
    Point,
    curves,
    dots_with_intervals,
    plane,
    spread_out,
    styles_of,
)

ARMS = [name for name in STYLES if name != "base"]
DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]


def interval(value: float, half: float | None = 0.04) -> dict[str, float | int | None]:
    ends = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "n": 5}


def line(name: str, place: int) -> Line:
    y = [0.1 + 0.01 * place, 0.3 + 0.02 * place, 0.4 + 0.04 * place]
    return Line(name, [1, 10, 100], y, [value - 0.05 for value in y], [value + 0.05 for value in y])


def shows_all(file: Path) -> bool:
    """Whether the figure has the usual width and the colour of every arm."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    colors = [
        np.array([int(STYLES[name].color[at : at + 2], 16) for at in (1, 3, 5)]) for name in ARMS
    ]
    seen = [(abs(pixels - color).max(-1) <= 4).sum() >= 12 for color in colors]
    return pixels.shape[1] == 1248 and all(seen)


def test_curves_of_all_arms_and_equal_files_for_equal_numbers(tmp_path: Path) -> None:
    lines = [line(name, place) for place, name in enumerate(ARMS)]
    by_nfe = Panel(
        "by NFE", "NFE", "photo rate", lines, percent=True, log_x=True, named=False, span_y=(0, 1)
    )
    panels = [by_nfe, Panel("by updates", "updates", "", lines)]
    one, other = (
        curves(tmp_path / name / "c.png", "Costs", panels, note="five seeds") for name in "ab"
    )
    assert (
        shows_all(one) and one.stat().st_size < 150_000 and one.read_bytes() == other.read_bytes()
    )


def test_dots_in_columns_and_what_was_not_reached(tmp_path: Path) -> None:
    values = {
        name: interval(0.2 + 0.05 * place, None if place == 2 else 0.04)
        for place, name in enumerate(ARMS)
    }
    columns = [
        DotColumn("photo rate", values, percent=True, at=0.11),
        DotColumn("cost", {**values, "refl": None}, log=True),
    ]
    assert shows_all(dots_with_intervals(tmp_path / "dots.png", "All arms", columns))


def test_a_plane_with_trails_and_a_legend(tmp_path: Path) -> None:
    points = [
        Point(
            name,
            interval(0.3 + 0.05 * place),
            interval(0.05, 0.01 if place else None),
            [(0.1, 0.02), (0.2, 0.04)],
        )
        for place, name in enumerate(ARMS)
    ]
    assert shows_all(plane(tmp_path / "plane.png", "All arms", "photo rate", "drift", points))


def lab(color: str, eye: list[list[float]]) -> np.ndarray:
    """CIE L*a*b* of a colour for an eye (Machado et al. 2009), white point D65."""
    encoded = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    light = np.clip(np.array(eye) @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ light / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "eye",
    [np.eye(3).tolist(), DEUTERANOPIA, PROTANOPIA],
    ids=["normal", "deuteranopia", "protanopia"],
)
@pytest.mark.parametrize(
    "colors",
    [[style.color for style in STYLES.values()], list(OTHER_COLORS)],
    ids=["methods", "others"],
)
def test_colours_stay_apart_for_every_eye(colors: list[str], eye: list[list[float]]) -> None:
    assert (
        min(
            np.linalg.norm(lab(one, eye) - lab(other, eye))
            for one, other in combinations(colors, 2)
        )
        > 18
    )


def test_every_arm_has_a_marker_a_readable_name_and_its_own_title() -> None:
    assert len({STYLES[name].marker for name in ARMS}) == len(ARMS)
    found = styles_of(
        ["srpo", "early_window", "late"], {"late": "late window", "srpo": "SRPO, ours"}
    )
    assert [style.title for style in found.values()] == [
        "SRPO, ours",
        "early window",
        "late window",
    ]
    assert found["srpo"].color == STYLES["srpo"].color and found["early_window"] != found["late"]
    for style in [*STYLES.values(), *found.values()]:
        lightness = lab(style.ink, np.eye(3).tolist())[0]
        assert 1.05 / (((lightness + 16) / 116) ** 3 + 0.05) > 4.4, "contrast on white"


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12))
def test_names_along_an_edge_keep_their_order_and_their_distance(wanted: list[int]) -> None:
    places = spread_out(wanted, 20, 0, 300)
    ordered = [place for _, place in sorted(zip(wanted, places, strict=True))]
    assert all(later - earlier >= 20 - 1e-9 for earlier, later in pairwise(ordered))
    assert min(places) >= -1e-9 and max(places) <= 300 + 1e-9


def test_names_with_room_stand_where_they_want() -> None:
    assert spread_out([10, 200, 90], 20, 0, 300) == [10, 200, 90]
    assert spread_out([100, 100], 20, 0, 300) == [90, 110]
