"""What is wrong with stop rules is known before anything loads, and `directalign check` tells what rules there are."""

from __future__ import annotations

from typing import Any

import pytest
from directalign.preflight.checks import check_early_stopping
from directalign.preflight.checks import early_stopping_warnings
from rich.console import Console
from test_stopping import recipe

from directalign.config.load import load_run, recipe_path
from directalign.training.run_log import Display
from directalign.types import DirectAlignError

RECIPE = recipe_path("world_stopping")


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (
            {"max_degradation": {"contnet": 0.03}},
            r"stop\.drift\.contnet: the run does not measure contnet; it measures photo_rate, content, .*color_drift: name one",
        ),
        (
            {"max_degradation": {"diversity": 0.03}},
            r"stop\.drift\.diversity: the run does not measure diversity",
        ),
        ({"judge": "held_out_second"}, r"stop\.judge: the run does not measure held_out_second"),
        (
            {"judge": "color_drift"},
            r"stop\.judge: color_drift is not better for being higher; name one that is \(photo_rate, content, reward, score_pos\), or give",
        ),
    ],
)
def test_numbers_that_are_not_measured_are_refused(stop: dict[str, Any], message: str):
    with pytest.raises(DirectAlignError, match=message):
        check_early_stopping(recipe(judge="world", stop=stop))


def test_the_rules_are_told():
    run = recipe(
        judge="world",
        stop={
            "max_degradation": {"content": 0.03, "color_drift": 0.05, "brightness": 0.2},
            "patience": 1,
            "score_patience": 3,
        },
    )
    told = (
        "content may fall by 0.03, color_drift may rise by 0.05, brightness may move by 0.2 (over it at 2 measurements in a row); "
        "no better photo_rate at 1 measurement in a row; score_pos below its peak at 3 measurements in a row"
    )
    assert check_early_stopping(run) == [
        ("stop", told),
        ("left", "the weights with the highest photo_rate within the budget"),
    ]
    assert check_early_stopping(recipe()) == [
        ("stop", "never by itself"),
        ("left", "the weights with the highest score_pos"),
    ]
    assert check_early_stopping(load_run(RECIPE, ["stop=null"])) == []


def test_patience_that_outlasts_the_run_is_doubted():
    assert early_stopping_warnings(recipe(stop={"max_degradation": {"reward": 1}, "patience": 3})) == []
    late, loose = early_stopping_warnings(recipe(stop={"patience": 10}))
    assert (
        late
        == "early_stopping.patience: takes 100 updates to end the run, and train.num_steps is 100: it never will"
    )
    assert loose.startswith(
        "early_stopping.max_degradation: is empty, and nothing holds back weights that the judge alone likes"
    )


def test_the_live_line_tells_what_is_used_of_the_budget(capsys: pytest.CaptureFixture[str]):
    with Display(10, 0, Console()) as display:
        display.evaluation({"step": 3, "content": 0.98}, {"content": 0.667, "color_drift": 0.2})
        display.evaluation({"step": 6, "content": 0.98}, {})
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert "content 0.98  budget 67% used (content)" in first and "budget 67% used" in second


def test_the_recipe_holds():
    run = load_run(RECIPE)
    assert (
        check_early_stopping(run)
        and early_stopping_warnings(run) == []
        and run.train.num_steps == 10 * 30
    )
