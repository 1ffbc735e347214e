"""Charts: round ticks, true positions, labels that do not overlap, nothing unescaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from directalign.report.bars import Scale, interval_bar
from directalign.report.charts import MOST_POINTS, Mark, Series, Spot, line_chart
from directalign.report.frame import NARROW, Axes, Frame, ticks
from directalign.report.labels import Label, apart, labels
from directalign.report.writing import told_apart, written


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


def test_numbers_on_an_axis_are_told_apart():
    assert told_apart([0.1, 0.15, 0.2]) == ["0.1", "0.15", "0.2"]
    assert told_apart([0.15353, 0.15356, 0.15359]) == ["0.15353", "0.15356", "0.15359"]
    assert told_apart([0.9991, 0.9992], percent=True) == ["99.91\u00a0%", "99.92\u00a0%"]
    assert told_apart([0.5, 0.5]) == ["0.5", "0.5"]


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


def test_labels_keep_their_distance():
    places = apart([50, 51, 52, 200], [16, 30, 16, 16], 20, 210)
    assert all(
        later - here >= size
        for here, later, size in zip(places, places[1:], [16, 30, 16], strict=False)
    )
    assert places[-1] <= 210 - 16


def test_a_long_line_is_drawn_through_means():
    chart = line_chart(
        [Series("", [(x, float(x % 2)) for x in range(10 * MOST_POINTS)])],
        Axes("update", "loss"),
        "Loss",
    )
    assert (
        chart.count("<circle") == MOST_POINTS
        and "mean of 10 points" in chart
        and len(chart) < 60_000
    )


def test_marks_and_spots_stand_where_they_belong():
    marks = [
        Mark(5, "kept", "kept"),
        Mark(10, "stop", "stop"),
        Mark(99, "outside", "stop"),
        Mark(0.5, "budget", "stop", across=True),
    ]
    spots = [
        Spot((5, 0.5), "kept: update 5", "kept", "kept"),
        Spot((10, 1), "stopped", "stop", "stop"),
        Spot((0, 0), "base", "start", "s1"),
    ]
    chart = line_chart(
        [Series("", [(0, 0), (5, 0.5), (10, 1)])],
        Axes("update", "loss"),
        "Loss",
        marks=marks,
        spots=spots,
    )
    ElementTree.fromstring(chart)
    assert "outside" not in chart and all(
        word in chart for word in (">kept<", ">stop<", "budget", "kept: update 5", "base")
    )
    rules = [
        tuple(map(float, found))
        for found in re.findall(r'mark-line \w+" x1="([\d.]+)" x2="([\d.]+)"', chart)
    ]
    dots = [float(x) for x in re.findall(r'class="dot s0" cx="([\d.]+)"', chart)]
    assert rules[0] == (dots[1], dots[1]) and rules[1] == (dots[2], dots[2])


def test_scales_of_rates_are_whole_and_others_fit():
    assert (
        Scale.around([0.2, 0.9], percent=True).low,
        Scale.around([0.2, 0.9], percent=True).high,
    ) == (0.0, 1.0)
    scale = Scale.around([20.0, 22.0])
    assert (
        scale.low < 20
        and scale.high > 22
        and all(0 <= place <= 100 for place, _ in scale.ticks(percent=False))
    )
    assert Scale.around([0.0]).low < 0 < Scale.around([0.0]).high
    ElementTree.fromstring(scale.bar("s0", (20.5, 21.5), 21.0, "<x>"))


def test_a_name_steps_aside_for_a_line():
    frame = Frame.around([0, 1], [0, 1], Axes("x", "y"), NARROW, 10)
    label = Label("a name", 100.0, 100.0, "s0")
    (free,) = labels([label], frame)
    (aside,) = labels([label], frame, [(float(x), 100.0) for x in range(100, 200, 5)])
    where = [float(re.search(r' y="([\d.]+)"', text)[1]) for text in (free, aside)]  # type: ignore[index]
    assert where == [104.0, 88.0]


def test_names_side_by_side_do_not_push_each_other():
    frame = Frame.around([0, 1], [0, 1], Axes("x", "y"), NARROW, 10)
    near, far = Label("one", 60.0, 100.0, "s0"), Label("two", 200.0, 100.0, "s1")
    assert [re.findall(r' y="([\d.]+)"', text) for text in labels([near, far], frame)] == [
        ["104.0"],
        ["104.0"],
    ]
    over = [
        float(y) for text in labels([near, near], frame) for y in re.findall(r' y="([\d.]+)"', text)
    ]
    assert over[1] - over[0] >= 15
