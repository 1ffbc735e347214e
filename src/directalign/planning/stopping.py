"""What is wrong with a recipe's stop rules, and what they come to: known before anything loads."""

from __future__ import annotations

from .. import config
from ..evaluation.in_training import judge_of, measured_metrics, score_of
from ..metrics import Metric
from ..types import DirectAlignError

WAYS = {1: "fall", -1: "rise", 0: "move"}


def check_stop(run: config.RunConfig) -> list[tuple[str, str]]:
    """The rules as a finding, none where the recipe has none.

    Raises: DirectAlignError for a number that the run does not measure, naming what it does, and for a judge that is no better for being higher.
    """
    if run.early_stopping is None:
        return []
    measured = measured_metrics(run)
    for name in run.early_stopping.drift:
        _check_measured(f"early_stopping.max_degradation.{name}", name, measured)
    judge = judge_of(run)
    _check_measured("early_stopping.metric_for_best", judge, measured)
    if not measured[judge].higher_is_better:
        better = ", ".join(name for name, each in measured.items() if each.higher_is_better)
        raise DirectAlignError(
            f"early_stopping.metric_for_best: {judge} is not better for being higher; name one that is ({better}), or give {judge} a budget in early_stopping.max_degradation"
        )
    left = f"the weights with the highest {judge}{' within the budget' if run.early_stopping.drift else ''}"
    return [("stop", _told(run.early_stopping, judge, score_of(run), measured)), ("left", left)]


def doubts_of_stop(run: config.RunConfig) -> list[str]:
    """A warning for patience that outlasts the run, and for a judge without anything to hold it."""
    if run.early_stopping is None:
        return []
    early_stopping, every, num_steps = run.early_stopping, run.evaluate.every, run.train.num_steps
    given = {
        "degradation_patience": early_stopping.degradation_patience
        if early_stopping.max_degradation
        else None,
        "patience": early_stopping.patience,
        "score_patience": early_stopping.score_patience,
    }
    late = {
        key: patience * every
        for key, patience in given.items()
        if patience is not None and patience * every >= num_steps
    }
    doubts = [
        f"stop.{key}: takes {updates} updates to end the run, and train.num_steps is {num_steps}: it never will"
        for key, updates in late.items()
    ]
    if not early_stopping.max_degradation and early_stopping.score_patience is None:
        doubts.append(
            "early_stopping.max_degradation: is empty, and nothing holds back weights that the judge alone likes; name what must not be lost, e.g. {content: 0.03}"
        )
    return doubts


def _check_measured(key: str, name: str, measured: dict[str, Metric]) -> None:
    if name not in measured:
        raise DirectAlignError(
            f"{key}: the run does not measure {name}; it measures {', '.join(measured)}: name one of these, or see evaluate in the recipe"
        )


def _told(
    stop: config.EarlyStoppingConfig, judge: str, score: str, measured: dict[str, Metric]
) -> str:
    """Every rule in a few words."""
    budget = ", ".join(
        f"{name} may {WAYS[measured[name].better]} by {allowed:g}"
        for name, allowed in early_stopping.max_degradation.items()
    )
    rules = (
        [f"{budget} (over it {_times(early_stopping.degradation_patience)})"]
        if early_stopping.max_degradation
        else []
    )
    rules += (
        [f"no better {judge} {_times(early_stopping.patience)}"]
        if early_stopping.patience is not None
        else []
    )
    rules += (
        [f"{score} below its peak {_times(early_stopping.score_patience)}"]
        if early_stopping.score_patience is not None
        else []
    )
    return "; ".join(rules) or "never by itself"


def _times(patience: int) -> str:
    return f"at {patience} measurement{'s' if patience > 1 else ''} in a row"
