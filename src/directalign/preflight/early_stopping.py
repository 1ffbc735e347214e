"""Checks of the rules that end a run early."""

from .. import config
from ..evaluation.in_training import judge_of, measured_metrics, score_of
from ..metrics import Metric
from ..types import DirectAlignError


def check_early_stopping(run: config.RunConfig) -> list[tuple[str, str]]:
    """The rules as (name, finding), none without early stopping.

    Raises DirectAlignError for a metric that the run does not measure, and for a `metric_for_best`
    of which higher is not better.
    """
    rules = run.early_stopping
    if rules is None:
        return []
    measured, best = measured_metrics(run), judge_of(run)
    keys = {f"max_degradation.{name}": name for name in rules.max_degradation}
    for key, name in (keys | {"metric_for_best": best}).items():
        if name not in measured:
            raise DirectAlignError(
                f"early_stopping.{key}: the run does not measure {name}; it measures "
                f"{', '.join(measured)}: name one of these, or see evaluate in the recipe"
            )
    if not measured[best].higher_is_better:
        better = ", ".join(name for name, each in measured.items() if each.higher_is_better)
        raise DirectAlignError(
            f"early_stopping.metric_for_best: higher is not better for {best}; name one of "
            f"{better}, or set a limit for {best} in early_stopping.max_degradation"
        )
    within = " within the limits" if rules.max_degradation else ""
    stops = _stop_rules(rules, best, score_of(run), measured)
    return [("stop", stops), ("exports", f"the weights with the highest {best}{within}")]


def _stop_rules(
    rules: config.EarlyStoppingConfig, best: str, score: str, measured: dict[str, Metric]
) -> str:
    """When a rule ends the run, in words."""
    directions = {True: "fall", False: "rise", None: "change"}
    limits = ", ".join(
        f"{name} may {directions[measured[name].higher_is_better]} by {allowed:g}"
        for name, allowed in rules.max_degradation.items()
    )
    words = {
        "degradation_patience": f"{limits}, exceeded",
        "patience": f"no better {best}",
        "score_patience": f"{score} below its peak",
    }
    found = [
        f"{words[key]} at {count} evaluation{'s' if count > 1 else ''} in a row"
        for key, count in _patience(rules).items()
    ]
    return "; ".join(found) or "only at train.num_steps"


def _patience(rules: config.EarlyStoppingConfig) -> dict[str, int]:
    """The rules in use, and how many evaluations in a row each takes."""
    unused = () if rules.max_degradation else ("degradation_patience",)
    keys = ("degradation_patience", "patience", "score_patience")
    given = {key: getattr(rules, key) for key in keys if key not in unused}
    return {key: count for key, count in given.items() if count is not None}


def early_stopping_warnings(run: config.RunConfig) -> list[str]:
    """Warnings for patience that exceeds the run, and for `metric_for_best` without limits."""
    rules, num_steps = run.early_stopping, run.train.num_steps
    if rules is None:
        return []
    updates = {key: count * run.evaluate.every for key, count in _patience(rules).items()}
    warnings = [
        f"early_stopping.{key}: needs {each} updates, and train.num_steps is {num_steps}: it never "
        "ends the run"
        for key, each in updates.items()
        if each >= num_steps
    ]
    if not rules.max_degradation and rules.score_patience is None:
        warnings.append(
            "early_stopping.max_degradation: empty, so only metric_for_best selects the weights; "
            "name metrics that must not degrade, e.g. {content: 0.03}"
        )
    return warnings
