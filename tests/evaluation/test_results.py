"""Summaries: which candidates are compared on what, in which direction, over which prompts."""

import math
from typing import Any

import pytest

from directalign.evaluation.results import summarise
from directalign.metrics import Metric
from directalign.stats import holm, sign_test

ABOUT = {
    "good": Metric("good", "Good", "held_out", True, "s"),
    "bad": Metric("bad", "Bad", "drift", False, "s"),
    "plain": Metric("plain", "Plain", "drift", None, "s"),
    "never": Metric("never", "Never", "drift", None, "s"),
}


def line(model: str, index: int, **numbers: float) -> dict[str, Any]:
    return {"model": model, "index": index, "prompt": f"prompt {index // 2}", "numbers": numbers}


LINES = [line("a", i, good=0.1 * i, bad=0.5, plain=math.sin(i)) for i in range(20)]
LINES += [
    line("b", i, good=0.1 * i + 0.25, bad=0.5 - 0.1 * (i % 4), plain=math.cos(i)) for i in range(20)
]
LINES += [line("c", i, good=0.0) for i in range(20)]


def test_means_differences_and_wins():
    found = summarise(["a", "b", "c"], LINES, ABOUT)
    assert list(found["names"]) == ["good", "bad", "plain"]
    about = {"label": "Bad", "role": "drift", "better": -1, "unit": "", "scale": "s"}
    assert found["names"]["bad"] == about
    assert found["models"]["a"]["good"]["value"] == pytest.approx(0.95)
    assert found["models"]["c"].keys() == {"good"}
    one = {(each["a"], each["b"], each["name"]): each for each in found["differences"]}
    gained = one["a", "b", "good"]
    assert gained["value"] == pytest.approx(0.25) == gained["low"] and gained["n"] == 20
    assert ("a", "c", "plain") not in one and ("b", "a", "good") not in one
    won = {(each["a"], each["b"], each["name"]): each for each in found["wins"]}
    assert {name for *_, name in won} == {"good", "bad"}, "a metric without a direction has no wins"
    smaller = won["a", "b", "bad"]  # smaller is better
    assert (smaller["wins"], smaller["ties"], smaller["losses"]) == (15, 5, 0)
    assert won["a", "b", "good"]["p"] == sign_test(10, 0), "one vote for each of ten prompts"
    corrected = [each["p_holm"] for each in found["wins"]]
    assert corrected == holm([each["p"] for each in found["wins"]]) and max(corrected) <= 1
    shuffled = sorted(LINES, key=lambda each: (each["index"], each["model"]))
    assert summarise(["a", "b", "c"], shuffled, ABOUT) == found


def test_all_numbers_of_a_metric_are_of_the_samples_that_every_candidate_has():
    lines = [each for each in LINES if each["model"] != "c" or each["index"] < 4]
    found = summarise(["a", "b", "c"], lines, ABOUT)
    of_good = [found["models"][key]["good"] for key in "abc"]
    of_good += [each for each in found["differences"] + found["wins"] if each["name"] == "good"]
    assert {each["n"] for each in of_good} == {4}
    assert found["models"]["a"]["good"]["value"] == pytest.approx(0.15)
    assert found["models"]["a"]["bad"]["n"] == 20
    apart = [line("a", 0, good=1.0), line("b", 1, good=0.5)]
    assert summarise(["a", "b"], apart, ABOUT)["models"] == {"a": {}, "b": {}}
