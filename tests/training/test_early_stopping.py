"""The stop rules as tables: records in, decision out; and what preflight reports about them."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from directalign import config
from directalign.config.load import load_run
from directalign.evaluation.in_training import judge_of, measured_metrics, score_of
from directalign.preflight.early_stopping import check_early_stopping, early_stopping_warnings
from directalign.training.early_stopping import Rules, evaluations, standard_error, verdict
from directalign.types import DirectAlignError

BETTER = {"judge": 1, "content": 1, "tint": -1, "light": 0, "score": 1}
LIMIT = {"max_degradation": {"content": 0.05}}


def rules(**settings: Any) -> Rules:
    return Rules(config.EarlyStoppingConfig.model_validate(settings), "judge", "score", BETTER)


def record(step: int, judge: float = 0.5, content: float = 1.0, **more: Any) -> dict[str, Any]:
    numbers = {"judge": judge, "content": {"value": content}}
    others = {"tint": 0.0, "light": 0.5, "score": 0.7, **more}
    return {"event": "evaluate", "step": step, **numbers, **others}


def course(every: int = 10, **metrics: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluations of one or several metrics over a run."""
    length = len(next(iter(metrics.values())))
    return [
        record(place * every, **{key: values[place] for key, values in metrics.items()})
        for place in range(length)
    ]


def best(given: Rules, records: list[dict[str, Any]], lost: Sequence[int] = ()) -> int | None:
    found = verdict(given, records, lost).best
    return found.step if found is not None else None


def spread(name: str, mean: float, half: float, count: int = 100) -> dict[str, list[float]]:
    """Values of single samples, `half` above and below the mean in turn."""
    return {name: [mean + half * (-1) ** place for place in range(count)]}


# --- degradation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "share"),
    [
        ({"content": 0.98}, 0.4),
        ({"tint": 0.1}, 2.0),
        ({"light": 0.6}, 0.5),
        ({"tint": math.nan}, math.inf),
    ],
)
def test_the_used_share_counts_what_is_worse(moved, share):
    given = rules(max_degradation={"content": 0.05, "tint": 0.05, "light": 0.2})
    found = evaluations(given, [record(0), record(10, **moved)])
    assert found[-1].degradation == pytest.approx(share)


# --- reasons to stop ------------------------------------------------------------------------------


TWICE = {**LIMIT, "degradation_patience": 2}


@pytest.mark.parametrize(
    ("settings", "metrics", "wanted"),
    [
        (TWICE, {"content": [1, 0.9, 0.97, 0.9]}, None),
        (TWICE, {"content": [1, 0.9, 0.97, 0.9, 0.88]}, "content is worse by 0.12, 0.05 is allo"),
        ({"patience": 2}, {"judge": [0.1, 0.5, 0.5, 0.4]}, "0.5 at step 10"),
        (
            {**LIMIT, "degradation_patience": 5, "patience": 2},
            {"judge": [0.1, 0.5, 0.8, 0.9], "content": [1, 1, 0.9, 0.9]},
            "0.5 at step 10",  # a better metric over budget is no improvement
        ),
        ({"score_patience": 2}, {"score": [0.7, 0.8, 0.6]}, None),
        ({"score_patience": 2}, {"score": [0.7, 0.8, 0.6, 0.5]}, "from 0.8 at step 10 to 0.5"),
    ],
)
def test_when_a_run_stops(settings, metrics, wanted):
    stop = verdict(rules(**settings), course(**metrics)).stop
    assert stop is None if wanted is None else wanted in str(stop)


def test_a_fall_of_the_score_within_its_noise_is_none():
    def records(last: float) -> list[dict[str, Any]]:
        peak = record(10, score=0.8, each=spread("score", 0.8, 0.1, 50))
        later = {"score": last, "each": {"score": [last] * 50}}
        return [record(0), peak, record(20, **later), record(30, **later)]

    assert verdict(rules(score_patience=2), records(0.79)).stop is None
    stop = verdict(rules(score_patience=2), records(0.75)).stop
    assert stop is not None and stop[0] == "score_peak"


# --- the best weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "metrics", "lost", "step"),
    [
        (LIMIT, {"judge": [0.1, 0.5, 0.9, 0.99], "content": [1, 1, 0.96, 0.9]}, {}, 20),
        ({}, {"judge": [0.1, 0.2, math.nan, 0.15]}, {}, 10),
        (LIMIT, {"judge": [0.1, 0.9, 0.95, 0.99], "content": [1, 0.8, 0.9, 0.85]}, {0}, 20),
        (LIMIT, {"judge": [0.1, 0.9], "content": [1, 0.8]}, {0, 10}, None),
        ({"score_patience": 2}, {"judge": [0.1, 0.5, 0.8], "score": [0.7, 0.8, 0.6]}, {}, 10),
        (
            {"score_patience": 2, **LIMIT},  # with a budget, the score's peak does not count
            {"judge": [0.1, 0.5, 0.8], "score": [0.7, 0.8, 0.6]},
            {},
            20,
        ),
    ],
)
def test_which_weights_are_best(settings, metrics, lost, step):
    assert best(rules(**settings), course(**metrics), list(lost)) == step


def test_of_equals_within_the_noise_the_less_degraded_is_best():
    given = rules(max_degradation={"tint": 0.1})
    noisy = [
        record(0, 0.1, each=spread("judge", 0.1, 0.3)),
        record(10, 0.9, tint=0.08, each=spread("judge", 0.9, 0.3)),
        record(20, 0.89, tint=0.02, each={"judge": [0.89] * 100}),
    ]
    _, first, second = evaluations(given, noisy)
    assert standard_error(first, second, "judge") == pytest.approx(0.03, rel=0.01)
    assert best(given, noisy) == 20
    far = [*noisy[:2], record(20, 0.8, tint=0.02, each={"judge": [0.8] * 100})]
    assert best(given, far) == 10
    without_samples = [{k: v for k, v in each.items() if k != "each"} for each in noisy]
    assert best(given, without_samples) == 10  # every difference counts


def test_the_best_does_not_decline_step_by_step():
    """Each is within the noise of the one before, the last is not within that of the highest."""
    records = [record(0, 0.1)]
    for place, judge in enumerate((0.9, 0.88, 0.86, 0.84, 0.8)):
        each = spread("judge", judge, 0.3 * (-1) ** place / 2)
        records.append(record(10 + place, judge, tint=0.5 - 0.1 * place, each=each))
    assert best(rules(max_degradation={"tint": 1.0}), records) == 11


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "records", "message"),
    [
        ({}, [record(10)], "base model was not measured"),
        ({}, [record(0, math.nan)], r"early_stopping: judge of the base model is not finite"),
        (
            {"max_degradation": {"sharp": 0.1}},
            [record(0)],
            r"sharp was not measured at step 0 \(metrics\.jsonl has judge, content, tint, light",
        ),
    ],
)
def test_records_without_a_reference_are_refused(settings, records, message):
    with pytest.raises(DirectAlignError, match=message):
        verdict(rules(**settings), records)


# --- names and preflight --------------------------------------------------------------------------

HELD_OUT = {"rewards": {"second": {"name": "clip", "path": "elsewhere"}}}
PIXELS = {"name": "pixels", "statistic": "redness"}


def recipe(
    reward: dict[str, Any] | None = None, stop: dict[str, Any] | None = None, **evaluate: Any
) -> config.RunConfig:
    phrases = {"positive": ["Photo"], "negative": ["Anime"]}
    given = {
        "name": "stop",
        "model": {"architecture": "flux", "path": "nowhere"},
        "reward": reward or {"name": "clip", "path": "nowhere"},
        "method": {"form": "absolute", "control_phrases": phrases},
        "data": {"prompts": "world"},
        "train": {"num_steps": 100},
        "evaluate": {"every": 10, **evaluate},
        "early_stopping": stop or {},
    }
    return config.RunConfig.model_validate(given)


def test_the_metric_is_the_best_that_is_measured():
    assert judge_of(recipe(judge="world", **HELD_OUT)) == "photo_rate"
    assert judge_of(recipe(**HELD_OUT)) == "held_out_second"
    assert judge_of(recipe()) == score_of(recipe()) == "score_pos"
    assert judge_of(recipe(PIXELS)) == score_of(recipe(PIXELS)) == "reward"
    named = recipe(stop={"metric_for_best": "score_pos"}, judge="world")
    assert judge_of(named) == "score_pos"


def test_every_metric_has_a_direction():
    run = recipe(judge="world", control_prompts="world", diversity_prompts=2, **HELD_OUT)
    better = {"content": 1, "color_drift": -1, "brightness": 0, "score_neg": 0, "diversity": 1}
    better |= {"held_out_second": 1, "off_topic_content": 1, "off_topic_reward": 0}
    found = measured_metrics(run)
    assert {name: found[name].better for name in better} == better
    assert not {"content", "diversity"} & measured_metrics(recipe()).keys()
    with pytest.raises(ValueError, match=r"evaluate\.every is 0"):
        recipe(every=0)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({"max_degradation": {"diversity": 0.03}}, r"diversity; it measures photo_rate, content, "),
        ({"metric_for_best": "held_out_second"}, r"metric_for_best: .* measure held_out_second"),
        ({"metric_for_best": "color_drift"}, r"higher is not better for color_drift; name one of"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(stop, message):
    with pytest.raises(DirectAlignError, match=message):
        check_early_stopping(recipe(judge="world", stop=stop))


def test_preflight_warns_of_patience_beyond_the_run_and_of_no_budget():
    limited = {"max_degradation": {"reward": 1}, "patience": 3}
    assert early_stopping_warnings(recipe(stop=limited)) == []
    late, unlimited = early_stopping_warnings(recipe(stop={"patience": 10}))
    assert "patience" in late and "100" in late and "max_degradation" in unlimited
    run = load_run("world_stopping")
    assert check_early_stopping(run) and early_stopping_warnings(run) == []
    assert run.train.num_steps == 10 * 30
