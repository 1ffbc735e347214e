"""Charts: round ticks, true positions, labels that do not overlap, nothing unescaped."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from directalign.report.charts import (
    MAX_POINTS,
    Axes,
    IntervalAxis,
    Marker,
    Rule,
    Series,
    interval_bar,
    line_chart,
    ticks,
)
from directalign.report.format import distinct, written


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(-0.3, 0.31) == [-0.2, 0.0, 0.2]
    assert ticks(0, 97) == [0, 25, 50, 75]
    for low, high in ((1e-7, 3e-7), (-5000.0, 12.0), (0.991, 0.9912)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and low <= min(found) and max(found) <= high


def test_numbers_as_people_write_them():
    assert [written(value) for value in (0.05, -1.5, 12345.0, 0.0)] == [
        "0.05",
        "−1.5",
        "12,345",
        "0",
    ]
    assert written(0.25, percent=True) == "25\u00a0%"


def test_numbers_on_an_axis_are_distinct():
    assert distinct([0.1, 0.15, 0.2]) == ["0.1", "0.15", "0.2"]
    assert distinct([0.15353, 0.15356, 0.15359]) == ["0.15353", "0.15356", "0.15359"]
    assert distinct([0.9991, 0.9992], percent=True) == ["99.91\u00a0%", "99.92\u00a0%"]
    assert distinct([0.5, 0.5]) == ["0.5", "0.5"]


def test_a_straight_line_is_drawn_straight():
    chart = line_chart([Series("", [(0, 0), (1, 1), (2, 2)])], Axes("update", "loss"), "Loss")
    points = re.search(r'<polyline[^>]*points="([^"]*)"', chart)
    assert points
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert (
        x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
        and y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
        and y2 < y0
    )


def test_charts_are_wellformed_and_escaped():
    hostile = "<script>alert('&\")</script>"
    band = [(0.0, -1.0, 1.0), (1.0, 0.0, 2.0)]
    chart = line_chart(
        [Series(hostile, [(0, 0), (1, 1)], band=band, notes=[hostile, hostile])],
        Axes(hostile, hostile),
        hostile,
    )
    ElementTree.fromstring(chart)
    assert "<script" not in chart
    ElementTree.fromstring(interval_bar([("s0", (0.1, 0.3), 0.2)], hostile))


def test_nothing_to_draw_and_nothing_that_varies():
    assert line_chart([Series("a", [])], Axes("x", "y"), "t") == ""
    for value in (0.0, 1.0, 1e9):
        ElementTree.fromstring(
            line_chart([Series("a", [(3, value)])], Axes("x", "y", y_low=0.0), "t")
        )


def test_a_long_line_is_drawn_through_means():
    chart = line_chart(
        [Series("", [(x, float(x % 2)) for x in range(10 * MAX_POINTS)])],
        Axes("update", "loss"),
        "Loss",
    )
    assert (
        chart.count("<circle") == MAX_POINTS
        and "mean of 10 points" in chart
        and len(chart) < 60_000
    )


def test_marks_and_spots_stand_where_they_belong():
    marks = [
        Rule(5, "kept", "kept"),
        Rule(10, "stop", "stop"),
        Rule(99, "outside", "stop"),
        Rule(0.5, "limit", "stop", horizontal=True),
    ]
    spots = [
        Marker((5, 0.5), "kept: update 5", "kept", "kept"),
        Marker((10, 1), "stopped", "stop", "stop"),
        Marker((0, 0), "base", "start", "s1"),
    ]
    chart = line_chart(
        [Series("", [(0, 0), (5, 0.5), (10, 1)])],
        Axes("update", "loss"),
        "Loss",
        rules=marks,
        markers=spots,
    )
    ElementTree.fromstring(chart)
    assert "outside" not in chart and all(
        word in chart for word in (">kept<", ">stop<", "limit", "kept: update 5", "base")
    )
    rules = [
        tuple(map(float, found))
        for found in re.findall(r'rule \w+" x1="([\d.]+)" x2="([\d.]+)"', chart)
    ]
    dots = [float(x) for x in re.findall(r'class="dot s0" cx="([\d.]+)"', chart)]
    assert rules[0] == (dots[1], dots[1]) and rules[1] == (dots[2], dots[2])


def test_scales_of_rates_are_whole_and_others_fit():
    assert (
        IntervalAxis.around([0.2, 0.9], percent=True).low,
        IntervalAxis.around([0.2, 0.9], percent=True).high,
    ) == (0.0, 1.0)
    scale = IntervalAxis.around([20.0, 22.0])
    assert (
        scale.low < 20
        and scale.high > 22
        and all(0 <= place <= 100 for place, _ in scale.ticks(percent=False))
    )
    assert IntervalAxis.around([0.0]).low < 0 < IntervalAxis.around([0.0]).high
    ElementTree.fromstring(scale.bar("s0", (20.5, 21.5), 21.0, "<x>"))


def test_labels_of_lines_do_not_overlap():
    lines = [Series(f"line {place}", [(0, place), (1, 1 + place / 100)]) for place in range(3)]
    chart = line_chart(lines, Axes("x", "y"), "t")
    found = re.findall(r'class="label s0" x="[\d.]+" y="([\d.]+)"', chart)
    ys = sorted(float(y) for y in found)
    assert len(ys) == 3 and all(later - y >= 15 for y, later in pairwise(ys))
