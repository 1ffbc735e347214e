"""Pictures are there, wide enough, small and repeatable; names keep clear of each other, and colours of confusion."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from directalign.studies.showing.figures import (
    Column,
    Line,
    Panel,
    Place,
    Scale,
    curves,
    dots_with_intervals,
    plane,
)
from directalign.studies.showing.palette import CONTRAST, LOOKS, OTHERS, linear, looks_of, luminance
from directalign.studies.showing.placing import Box, apart, beside
from directalign.studies.showing.sheet import tick

ARMS = [name for name in LOOKS if name != "base"]
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


def read(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def shows(pixels: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return bool((abs(pixels - wanted).max(-1) <= 4).sum() >= 12)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_curves_of_all_arms(tmp_path: Path) -> None:
    lines = [line(name, place) for place, name in enumerate(ARMS)]
    panels = [
        Panel(
            "by calls",
            "calls",
            "photo rate",
            lines,
            percent=True,
            log_x=True,
            named=False,
            span_y=(0, 1),
        ),
        Panel("by updates", "updates", "", lines),
    ]
    file = curves(tmp_path / "new" / "curves.png", "SRPO is cheapest", panels, note="five seeds")
    pixels = read(file)
    assert pixels.shape[1] == 1248 and 400 < pixels.shape[0] < 700 and file.stat().st_size < 150_000
    assert [name for name in ARMS if not shows(pixels, LOOKS[name].colour)] == []


def test_equal_numbers_give_equal_files(tmp_path: Path) -> None:
    panels = [Panel("", "x", "y", [line("srpo", 0), line("refl", 1)])] * 4
    one, other = (
        curves(tmp_path / name, "the same", panels, columns=2).read_bytes()
        for name in ("a.png", "b.png")
    )
    assert one == other


def test_few_lines_have_bands_and_many_have_whiskers(tmp_path: Path) -> None:
    def tinted(names: list[str]) -> int:
        pixels = read(
            curves(
                tmp_path / "c.png",
                "",
                [
                    Panel(
                        "",
                        "x",
                        "y",
                        [line(name, place) for place, name in enumerate(names)],
                        named=False,
                    )
                ],
            )
        )
        band = 255 - 0.15 * (255 - np.array([0xA5, 0x06, 0x00]))
        return int((abs(pixels - band).max(-1) <= 12).sum())

    assert tinted(["refl", "draft_k"]) > 5 * tinted(
        ["flow_grpo", *[name for name in ARMS if name != "flow_grpo"]]
    )


def test_dots_in_columns_and_what_was_not_reached(tmp_path: Path) -> None:
    values = {
        name: interval(0.2 + 0.05 * place, None if place == 2 else 0.04)
        for place, name in enumerate(ARMS)
    }
    columns = [
        Column("photo rate", values, percent=True, at=0.11),
        Column("cost", {**values, "refl": None}, log=True),
    ]
    pixels = read(dots_with_intervals(tmp_path / "dots.png", "All arms", columns))
    assert pixels.shape[1] == 1248 and all(shows(pixels, LOOKS[name].colour) for name in ARMS)


def test_a_plane_with_trails_and_a_corner_that_is_better(tmp_path: Path) -> None:
    places = [
        Place(
            name,
            interval(0.3 + 0.05 * place),
            interval(0.05, 0.01 if place else None),
            [(0.1, 0.02), (0.2, 0.04)],
        )
        for place, name in enumerate(ARMS)
    ]
    file = plane(
        tmp_path / "plane.png",
        "Where they stand",
        Scale("photo rate", percent=True),
        Scale("drift"),
        places,
        better="lower right",
    )
    assert read(file).shape[1] == 1248 and all(
        shows(read(file), LOOKS[name].colour) for name in ARMS
    )


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (0.4, True, "40 %"),
        (3000.0, False, "3 k"),
        (2e6, False, "2 M"),
        (-0.05, False, "−0.05"),
        (0.0, False, "0"),
    ],
)
def test_ticks(value: float, percent: bool, text: str) -> None:
    assert tick(value, percent) == text


# --- looks ------------------------------------------------------------------------------------------------------------


def seen(colour: str, eye: list[list[float]]) -> np.ndarray:
    """CIE L*a*b* of a colour for an eye (Machado et al. 2009), white point D65."""
    light = np.clip(np.array(eye) @ linear(colour), 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ light
        / [0.9505, 1, 1.089]
    )
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "eye",
    [np.eye(3).tolist(), DEUTERANOPIA, PROTANOPIA],
    ids=["normal", "deuteranopia", "protanopia"],
)
@pytest.mark.parametrize(
    "colours", [[look.colour for look in LOOKS.values()], list(OTHERS)], ids=["methods", "others"]
)
def test_colours_stay_apart_for_every_eye(colours: list[str], eye: list[list[float]]) -> None:
    assert (
        min(
            np.linalg.norm(seen(one, eye) - seen(other, eye))
            for one, other in combinations(colours, 2)
        )
        > 18
    )


def test_every_method_has_its_mark_and_a_name_that_can_be_read() -> None:
    assert len({LOOKS[name].mark for name in ARMS}) == len(ARMS)
    for look in [*LOOKS.values(), *looks_of(list("abcdefgh"), {}).values()]:
        assert 1.05 / (luminance(look.ink) + 0.05) > CONTRAST - 0.1
    assert LOOKS["direct_align"].ink == LOOKS["direct_align"].colour


def test_an_arm_that_one_study_knows_gets_a_free_look_and_its_own_title() -> None:
    looks = looks_of(
        ["srpo", "early_window", "late"], {"late": "late window", "srpo": "SRPO, ours"}
    )
    assert [look.title for look in looks.values()] == ["SRPO, ours", "early window", "late window"]
    assert looks["srpo"].colour == LOOKS["srpo"].colour and looks["early_window"] != looks["late"]


# --- placing ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12))
def test_names_along_an_edge_keep_their_order_and_their_distance(wanted: list[int]) -> None:
    places = apart(wanted, 20, 0, 300)
    ordered = [place for _, place in sorted(zip(wanted, places, strict=True))]
    assert all(later - earlier >= 20 - 1e-9 for earlier, later in pairwise(ordered))
    assert min(places) >= -1e-9 and max(places) <= 300 + 1e-9


def test_names_with_room_stand_where_they_want() -> None:
    assert apart([10, 200, 90], 20, 0, 300) == [10, 200, 90]
    assert apart([100, 100], 20, 0, 300) == [90, 110]


def test_names_around_points_cover_nothing() -> None:
    points = [(100, 100), (104, 106), (98, 92), (290, 100)]
    boxes = beside(points, [(60, 16)] * 4, Box(0, 0, 300, 200), [Box(110, 80, 170, 120)])
    assert all(
        one.overlap(other) == 0 for one, other in combinations([*boxes, Box(110, 80, 170, 120)], 2)
    )
    assert all(box.left >= 0 and box.right <= 300 for box in boxes)
