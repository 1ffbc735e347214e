"""Summaries: which candidates are compared on what, in which direction, over which prompts."""

from __future__ import annotations

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


def lines() -> list[dict[str, Any]]:
    first = [
        line("a", index, good=0.1 * index, bad=0.5, plain=math.sin(index)) for index in range(20)
    ]
    second = [
        line(
            "b", index, good=0.1 * index + 0.25, bad=0.5 - 0.1 * (index % 4), plain=math.cos(index)
        )
        for index in range(20)
    ]
    return [*first, *second, *(line("c", index, good=0.0) for index in range(4))]


def test_means_differences_and_wins() -> None:
    found = summarise(["a", "b", "c"], lines(), ABOUT)
    assert list(found["names"]) == ["good", "bad", "plain"] and found["names"]["bad"] == {
        "label": "Bad",
        "role": "drift",
        "better": -1,
        "unit": "",
        "scale": "s",
    }
    assert found["models"]["a"]["good"]["value"] == pytest.approx(0.95) and found["models"][
        "c"
    ].keys() == {"good"}
    one = {(each["a"], each["b"], each["name"]): each for each in found["differences"]}
    assert (
        one["a", "b", "good"]["value"] == pytest.approx(0.25) == one["a", "b", "good"]["low"]
        and one["a", "b", "good"]["n"] == 20
    )
    assert (
        one["a", "c", "good"]["n"] == 4
        and ("a", "c", "plain") not in one
        and ("b", "a", "good") not in one
    )
    won = {(each["a"], each["b"], each["name"]): each for each in found["wins"]}
    assert {name for _, _, name in won} == {"good", "bad"}, (
        "nobody wins by a number that only describes"
    )
    assert (
        won["a", "b", "bad"]["wins"],
        won["a", "b", "bad"]["ties"],
        won["a", "b", "bad"]["losses"],
    ) == (15, 5, 0), "smaller is better"
    assert won["a", "b", "good"]["p"] == sign_test(10, 0), "ten prompts of two images vote"


def test_all_wins_of_a_summary_are_one_family() -> None:
    wins = summarise(["a", "b", "c"], lines(), ABOUT)["wins"]
    assert [each["p_holm"] for each in wins] == holm([each["p"] for each in wins]) and max(
        each["p_holm"] for each in wins
    ) <= 1


def test_the_order_of_the_lines_does_not_matter() -> None:
    shuffled = sorted(lines(), key=lambda each: (each["index"], each["model"]))
    assert summarise(["a", "b", "c"], shuffled, ABOUT) == summarise(["a", "b", "c"], lines(), ABOUT)


def test_rates_end_at_0_and_1() -> None:
    all_right = [line("a", index, good=1.0) for index in range(20)]
    found = summarise(["a"], all_right, ABOUT)["models"]["a"]["good"]
    assert found["high"] == 1.0 and 0.6 < found["low"] < 0.8 and found["n"] == 20
