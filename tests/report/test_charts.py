"""Charts: round ticks, true positions, labels that do not overlap, nothing unescaped."""

import re
from xml.etree import ElementTree

from directalign.report.charts import Axes, IntervalAxis, Marker, Rule, Series, line_chart, ticks

AXES = Axes("update", "loss")


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(-0.3, 0.31) == [-0.2, 0.0, 0.2]
    assert ticks(0, 97) == [0, 25, 50, 75]
    for low, high in ((1e-7, 3e-7), (-5000.0, 12.0), (0.991, 0.9912)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and low <= min(found) and max(found) <= high


def test_charts_are_well_formed_and_escaped():
    hostile = "<script>alert('&\")</script>"
    band = [(0.0, -1.0, 1.0), (1.0, 0.0, 2.0)]
    line = Series(hostile, [(0, 0), (1, 1)], band=band, notes=[hostile, hostile])
    charts = [line_chart([line], Axes(hostile, hostile), hostile)]
    charts.append(IntervalAxis().row([("s0", (0.2, 0.1, 0.3))], hostile))
    for value in (0.0, 1.0, 1e9):  # a single point
        charts.append(line_chart([Series("a", [(3, value)])], Axes("x", "y", y_low=0.0), "t"))
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "<script" not in chart
    assert line_chart([Series("a", [])], Axes("x", "y"), "t") == ""


def test_rules_and_markers_are_at_their_points():
    rules = [Rule(5, "kept", "kept"), Rule(10, "stop", "stop"), Rule(99, "outside", "stop")]
    rules.append(Rule(0.5, "limit", "stop", horizontal=True))
    markers = [
        Marker((5, 0.5), "kept: update 5", "kept", "kept"),
        Marker((10, 1), "stopped", "stop", "stop"),
        Marker((0, 0), "base", "start", "s1"),
    ]
    line = Series("", [(0, 0), (5, 0.5), (10, 1)])
    chart = line_chart([line], AXES, "Loss", rules=rules, markers=markers)
    ElementTree.fromstring(chart)
    assert "outside" not in chart
    for text in (">kept<", ">stop<", "limit", "kept: update 5", "base"):
        assert text in chart
    ends = re.findall(r'rule \w+" x1="([\d.]+)" x2="([\d.]+)"', chart)
    dots = re.findall(r'class="dot s0" cx="([\d.]+)"', chart)
    assert ends[:2] == [(dots[1], dots[1]), (dots[2], dots[2])]
