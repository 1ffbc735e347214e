"""Every number of every model with its interval, one row per model on a common axis; and the models in the plane of judge and drift."""

from __future__ import annotations

from ..metrics import ROLES, Metric, by_role, drifting, judging
from .bars import Scale
from .charts import Ends, Point, Series, line_chart
from .comparison_files import Comparison, Model
from .figures import BASE, styled
from .files import number
from .planes import SIZES, Plane, axes_of
from .writing import cut, interval
from dataclasses import dataclass
from typing import Any
from markupsafe import Markup


FROM_THE_BASE = "base_"
"""Numbers that begin so are distances to the base model, which itself has none: it stands at 0."""
FULL_AXIS = ("judge", "adherence", "leakage")


@dataclass(frozen=True)
class Row:
    """A model's number; `trained` where this model was trained on it."""

    model: Model
    style: str
    bar: Markup
    value: str
    ends: str
    trained: bool


@dataclass(frozen=True)
class Panel:
    """One number of all models; `ticks` are (place in percent of a row, number), `n` the images of each."""

    metric: Metric
    rows: list[Row]
    ticks: list[tuple[float, str]]
    n: int


def styles_of(comparison: Comparison) -> dict[str, str]:
    """The colour class of every model by key; the base model is grey."""
    first = comparison.models[:1]
    others = comparison.models[1:]
    grey = {model.key: BASE for model in first}
    return grey | {
        model.key: style for model, style in zip(others, styled(len(others)), strict=True)
    }


def panels(comparison: Comparison) -> list[tuple[str, str, str, list[Panel]]]:
    """(title, chip, sentence, panels) of each role."""
    grouped = by_role(comparison.metrics.values())
    found = [
        (
            *ROLES[role],
            [panel for each in metrics if (panel := _panel(comparison, each)) is not None],
        )
        for role, metrics in grouped
    ]
    return [(title, chip, sentence, each) for title, chip, sentence, each in found if each]


def _panel(comparison: Comparison, each: Metric) -> Panel | None:
    styles = styles_of(comparison)
    told = [(model, comparison.interval(model.key, each.name)) for model in comparison.models]
    known = [(model, said) for model, said in told if number(said) is not None]
    if not known:
        return None
    full = each.percent and each.role in FULL_AXIS
    scale = Scale.around(
        [end for _, said in known for end in (*_ends(said), number(said) or 0.0)], full
    )
    rows = [_row(model, styles[model.key], said, each, scale) for model, said in known]
    counts = [number(said.get("n")) or 0 for _, said in known if isinstance(said, dict)]
    return Panel(each, rows, scale.ticks(each.percent), int(max(counts, default=0)))


def _row(model: Model, style: str, said: Any, each: Metric, scale: Scale) -> Row:
    value, ends = interval(said, each.percent)
    bar = scale.bar(
        style,
        _ends(said),
        number(said) or 0.0,
        f"{model.label}: {value} ({ends})" if ends else f"{model.label}: {value}",
    )
    return Row(model, style, bar, value, ends, each.name in model.trained_on)


def _ends(said: Any) -> Point:
    value = number(said) or 0.0
    low, high = (
        number(said.get(end)) if isinstance(said, dict) else None for end in ("low", "high")
    )
    return (value if low is None else low, value if high is None else high)


def plane(comparison: Comparison) -> Plane | None:
    """The models by the first judge and the first measure of drift that at least two of them have."""
    judge = next(
        (
            each
            for each in judging(comparison.metrics.values())
            if len(_points(comparison, each, each)) > 1
        ),
        None,
    )
    if judge is None:
        return None
    drifts = [
        *drifting(comparison.metrics.values()),
        *(each for each in comparison.metrics.values() if each.name.startswith(FROM_THE_BASE)),
    ]
    drift = next((each for each in drifts if len(_points(comparison, judge, each)) > 1), None)
    if drift is None:
        return None
    styles = styles_of(comparison)
    lines = [
        Series(cut(model.label, 40), [point], styles[model.key], spread=[ends])
        for model, point, ends in _points(comparison, judge, drift)
    ]
    title = f"{drift.label} against {judge.label}, one point per model"
    return Plane(
        judge,
        drift,
        {
            name: line_chart(lines, axes_of(judge, drift), title, size=size)
            for name, size in SIZES.items()
        },
    )


def _points(
    comparison: Comparison, judge: Metric, drift: Metric
) -> list[tuple[Model, Point, Ends]]:
    found = []
    for model in comparison.models:
        across, up = _told(comparison, model, judge), _told(comparison, model, drift)
        x, y = number(across), number(up)
        if x is not None and y is not None:
            found.append((model, (x, y), (*_ends(across), *_ends(up))))
    return found


def _told(comparison: Comparison, model: Model, each: Metric) -> Any:
    said = comparison.interval(model.key, each.name)
    return (
        0.0
        if said is None and model.kind == "base" and each.name.startswith(FROM_THE_BASE)
        else said
    )
