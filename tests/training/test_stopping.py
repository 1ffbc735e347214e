"""The stop rules as tables: records in, decision out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from directalign import config
from directalign.evaluation.in_training import judge_of, measured_metrics, score_of
from directalign.training.early_stopping import Rules, Verdict, evaluations, standard_error, verdict
from directalign.types import DirectAlignError

BETTER: dict[str, int] = {"judge": 1, "content": 1, "tint": -1, "light": 0, "score": 1}


def rules(**stop: Any) -> Rules:
    return Rules(config.EarlyStoppingConfig.model_validate(stop), "judge", "score", BETTER)


def record(
    step: int,
    judge: float = 0.5,
    content: float = 1.0,
    tint: float = 0.0,
    light: float = 0.5,
    score: float = 0.7,
    **more: Any,
) -> dict[str, Any]:
    return {
        "event": "evaluate",
        "step": step,
        "judge": judge,
        "content": {"value": content},
        "tint": tint,
        "light": light,
        "score": score,
        **more,
    }


def course(
    name: str, values: Sequence[float], every: int = 10, **other: Sequence[float]
) -> list[dict[str, Any]]:
    """Measurements of one number, or several, along a run."""
    numbers = {name: values, **other}
    return [
        record(place * every, **{key: series[place] for key, series in numbers.items()})
        for place in range(len(values))
    ]


def best(given: Rules, records: list[dict[str, Any]], **more: Any) -> int | None:
    found = verdict(given, records, **more).best
    return found.step if found is not None else None


def reason(found: Verdict) -> str | None:
    return found.stop.reason if found.stop is not None else None


def single_pairs(base: float, spread: float, count: int = 100) -> dict[str, list[float]]:
    """A judge's answers that lie `spread` above and below in turn."""
    return {"judge": [base + spread * (-1) ** place for place in range(count)]}


# --- drift ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "share"),
    [
        ({"content": 0.98}, 0.4),
        ({"content": 1.2}, 0.0),
        ({"tint": 0.1}, 2.0),
        ({"tint": -0.1}, 0.0),
        ({"light": 0.4}, 0.5),
        ({"light": 0.6}, 0.5),
        ({"tint": math.nan}, math.inf),
        ({"tint": None}, math.inf),
    ],
)
def test_a_budget_counts_what_is_worse(moved: dict[str, float], share: float):
    given = rules(max_degradation={"content": 0.05, "tint": 0.05, "light": 0.2})
    assert evaluations(given, [record(0), record(10, **moved)])[-1].degradation == pytest.approx(share)


def test_it_ends_when_the_budget_is_overdrawn_as_often_in_a_row_as_asked():
    given = rules(max_degradation={"content": 0.05}, degradation_patience=2)
    assert reason(verdict(given, course("content", [1, 0.9]))) is None
    assert reason(verdict(given, course("content", [1, 0.9, 0.97, 0.9]))) is None
    found = verdict(given, course("content", [1, 0.9, 0.97, 0.9, 0.88]))
    assert reason(found) == "drift" and found.stop is not None
    assert (
        found.stop.message
        == "max_degradation exceeded: content is worse by 0.12, 0.05 is allowed, over budget at 2 evaluations in a row"
    )


def test_the_base_models_own_number_on_the_same_pairs_is_the_reference():
    base = record(0, content=0.9, during={"content": {"value": 1.0}})
    found = evaluations(rules(max_degradation={"content": 0.1}), [base, record(10, content=0.95)])
    assert found[-1].degradation == pytest.approx(0.5) and found[0].degradation == 0


# --- the best weights -------------------------------------------------------------------------------------------------


def test_the_highest_judge_within_the_budget_is_kept():
    given = rules(max_degradation={"content": 0.05})
    assert (
        best(given, course("judge", [0.1, 0.5, 0.9, 0.99, 0.6], content=[1, 1, 0.96, 0.9, 1])) == 20
    )


def test_of_what_cannot_be_told_apart_the_less_drifted_is_kept():
    given = rules(max_degradation={"tint": 0.1})
    noisy = [
        record(0, 0.1, each=single_pairs(0.1, 0.3)),
        record(10, 0.9, tint=0.08, each=single_pairs(0.9, 0.3)),
        record(20, 0.89, tint=0.02, each={"judge": [0.89] * 100}),
    ]
    _, first, second = evaluations(given, noisy)
    assert standard_error(first, second, "judge") == pytest.approx(0.03, rel=0.01)
    assert best(given, noisy) == 20
    far = [*noisy[:2], record(20, 0.8, tint=0.02, each={"judge": [0.8] * 100})]
    assert best(given, far) == 10
    assert (
        best(given, [record(0, 0.1), record(10, 0.9, tint=0.08), record(20, 0.89, tint=0.02)]) == 10
    )  # without single pairs every difference counts


def test_modesty_does_not_walk_down_step_by_step():
    """Each is within the noise of the one before, the last is not within that of the highest."""
    given = rules(max_degradation={"tint": 1.0})
    down = [record(0, 0.1)]
    for place, judge in enumerate((0.9, 0.88, 0.86, 0.84, 0.8)):
        down.append(
            record(
                10 + place,
                judge,
                tint=0.5 - 0.1 * place,
                each=single_pairs(judge, 0.3 * (-1) ** place / 2),
            )
        )
    assert best(given, down) == 11


def test_without_a_budget_equals_keep_the_first():
    assert best(rules(), course("judge", [0.1, 0.9, 0.9, 0.9])) == 10


def test_nothing_within_the_budget_leaves_the_base_model():
    assert (
        best(
            rules(max_degradation={"content": 0.05}), course("judge", [0.1, 0.9, 0.95], content=[1, 0.9, 0.8])
        )
        == 0
    )


def test_where_its_weights_are_gone_those_that_overdraw_least_are_kept():
    given = rules(max_degradation={"content": 0.05})
    records = course("judge", [0.1, 0.9, 0.95, 0.99], content=[1, 0.8, 0.9, 0.85])
    assert (
        best(given, records, lost={0}) == 20 and best(given, records, lost={0, 10, 20, 30}) is None
    )


def test_a_judge_that_is_not_finite_is_the_worst():
    assert best(rules(), course("judge", [0.1, 0.2, math.nan, 0.15])) == 10


# --- patience ---------------------------------------------------------------------------------------------------------


def test_it_ends_when_the_judge_gets_no_better():
    given = rules(patience=2)
    assert reason(verdict(given, course("judge", [0.1, 0.5, 0.5]))) is None
    assert reason(verdict(given, course("judge", [0.1, 0.5, 0.5, 0.6, 0.6]))) is None
    found = verdict(given, course("judge", [0.1, 0.5, 0.5, 0.4]))
    assert (
        reason(found) == "patience"
        and found.stop is not None
        and "0.5 at step 10" in found.stop.message
    )


def test_a_judge_over_budget_is_no_better_one():
    given = rules(max_degradation={"content": 0.05}, degradation_patience=5, patience=2)
    assert (
        reason(verdict(given, course("judge", [0.1, 0.5, 0.8, 0.9], content=[1, 1, 0.9, 0.9])))
        == "patience"
    )


def test_it_ends_when_the_absolute_score_is_past_its_peak():
    """The course that a relative reward takes: it rises, peaks and falls."""
    given = rules(score_patience=2)
    falling = course("score", [0.744, 0.777, 0.688, 0.458])
    assert [reason(verdict(given, falling[: count + 1])) for count in range(4)] == [
        None,
        None,
        None,
        "score_peak",
    ]
    assert "from 0.777 at step 10 to 0.458" in str(verdict(given, falling).stop)
    assert reason(verdict(given, course("score", [0.7, 0.8, 0.75, 0.81, 0.78]))) is None


def test_a_fall_within_its_noise_is_none():
    pairs = [
        {"score": [0.8 + 0.1 * (-1) ** place for place in range(50)]},
        {"score": [0.79] * 50},
        {"score": [0.75] * 50},
    ]
    records = [
        record(0),
        record(10, score=0.8, each=pairs[0]),
        record(20, score=0.79, each=pairs[1]),
        record(30, score=0.79, each=pairs[1]),
    ]
    assert reason(verdict(rules(score_patience=2), records)) is None
    clear = [*records[:2], *(record(step, score=0.75, each=pairs[2]) for step in (20, 30))]
    assert reason(verdict(rules(score_patience=2), clear)) == "score_peak"


def test_weights_past_the_peak_of_the_score_are_not_kept_whatever_the_judge_likes():
    records = course("judge", [0.1, 0.5, 0.8, 0.9], score=[0.74, 0.78, 0.69, 0.46])
    assert best(rules(score_patience=2), records) == 10 and best(rules(), records) == 30
    assert (
        best(rules(score_patience=2, max_degradation={"content": 0.05}), records) == 30
    )  # a budget draws the line by itself


def test_a_later_peak_does_not_change_what_was_decided():
    records = course("judge", [0.1, 0.5, 0.8, 0.6], score=[0.7, 0.8, 0.75, 0.9])
    given, expected = rules(score_patience=9), [False, False, True, False]
    assert [each.fallen for each in evaluations(given, records)] == expected
    assert [evaluations(given, records[: count + 1])[-1].fallen for count in range(4)] == expected


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_decision_is_the_same_from_the_file():
    given = rules(max_degradation={"tint": 0.05}, patience=2, score_patience=2)
    records = [
        record(step, 0.1 + step / 97, tint=step / 1003, each=single_pairs(step / 7, 0.123456))
        for step in range(0, 60, 10)
    ]
    again = [json.loads(json.dumps(each)) for each in records]
    assert verdict(given, records) == verdict(given, again)


def test_other_events_are_passed_over():
    records = [{"event": "step", "step": 1}, *course("judge", [0.1, 0.5])]
    assert (
        best(rules(), [*records, {"event": "stop", "step": 10}, {"event": "kept", "step": 10}])
        == 10
    )


def test_records_that_cannot_be_judged_are_refused():
    with pytest.raises(DirectAlignError, match="base model was not measured"):
        verdict(rules(), [record(10)])
    with pytest.raises(DirectAlignError, match=r"early_stopping: judge of the base model is not finite"):
        verdict(rules(), [record(0, math.nan)])
    with pytest.raises(
        DirectAlignError,
        match=r"early_stopping: sharp was not measured at step 0 \(metrics\.jsonl has judge, content, tint, light, score\)",
    ):
        verdict(rules(max_degradation={"sharp": 0.1}), [record(0)])


# --- names ------------------------------------------------------------------------------------------------------------


def recipe(
    reward: dict[str, Any] | None = None,
    words: Sequence[str] = ("Photo",),
    stop: dict[str, Any] | None = None,
    **evaluate: Any,
) -> config.RunConfig:
    given = {
        "name": "stop",
        "model": {"architecture": "flux", "path": "nowhere"},
        "reward": reward or {"name": "clip", "path": "nowhere"},
        "method": {
            "form": "absolute",
            "control_phrases": {"positive": list(words), "negative": ["Anime"]},
        },
        "data": {"prompts": "world"},
        "train": {"num_steps": 100},
        "evaluate": {"every": 10, **evaluate},
        "early_stopping": stop or {},
    }
    return config.RunConfig.model_validate(given)


def test_the_judge_is_the_best_that_is_measured():
    held_out = {"second": {"name": "clip", "path": "elsewhere"}}
    assert judge_of(recipe(judge="world", rewards=held_out)) == "photo_rate"
    assert judge_of(recipe(rewards=held_out)) == "held_out_second"
    assert judge_of(recipe()) == score_of(recipe()) == "score_pos"
    assert (
        judge_of(recipe({"name": "pixels", "statistic": "redness"}))
        == "reward"
        == score_of(recipe(control_phrases=()))
    )
    assert judge_of(recipe(judge="world", stop={"metric_for_best": "score_pos"})) == "score_pos"


def test_every_number_has_a_way_of_being_worse():
    found = measured_metrics(
        recipe(
            judge="world",
            control_prompts="world",
            diversity_prompts=2,
            rewards={"second": {"name": "clip", "path": "elsewhere"}},
        )
    )
    ways = {
        "content": 1,
        "color_drift": -1,
        "brightness": 0,
        "score_neg": 0,
        "held_out_second": 1,
        "diversity": 1,
        "off_topic_content": 1,
        "off_topic_reward": 0,
    }
    assert {name: found[name].better for name in ways} == ways
    assert "content" not in measured_metrics(recipe()) and "diversity" not in measured_metrics(
        recipe()
    )


def test_rules_without_measurements_are_refused():
    with pytest.raises(ValueError, match=r"evaluate\.every is 0"):
        recipe(every=0)
