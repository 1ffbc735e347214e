"""The page of a comparison: who wins, in pictures and in numbers, what it cost, where it went wrong, how to repeat it."""

from __future__ import annotations

from ..metrics import Metric
from . import by_group
from .album import BUDGET
from .comparison_files import Comparison, Model, read_comparison
from .extremes import extremes, pictures_of
from .files import mapping, number
from .panels import panels, plane, styles_of
from .rendering import environment_of, render
from .settings import MOST_ROWS, differing
from .wall import wall
from .wins import Cell, Matrix, corrected, matrices
from .writing import counted, cut
from dataclasses import dataclass
from pathlib import Path


MOST_JUDGES = 3
OFF_TOPIC = "control_prompts"
"""The group of control prompts."""
FOR_PICTURES, FOR_EXTREMES = BUDGET * 3 // 5, BUDGET * 2 // 5


@dataclass(frozen=True)
class Headline:
    """A model against the first, by the first number that says who wins, and by the other judges."""

    model: Model
    style: str
    by: Metric
    cell: Cell
    others: list[tuple[Metric, Cell]]


def html(folder: Path) -> str:
    """The whole page."""
    found = read_comparison(folder)
    styles = styles_of(found)
    wins, ends = matrices(found), extremes(found)
    settings = [model.settings for model in found.models]
    return render(
        "comparison.html.j2",
        title=_title(found),
        lead=_lead(found),
        models=found.models,
        styles=styles,
        headlines=_headlines(wins, styles),
        wall=wall(found, FOR_PICTURES),
        matrices=wins,
        corrected=corrected(found),
        panels=panels(found),
        planes=[each for each in [plane(found)] if each is not None],
        extremes=ends,
        extreme_pictures=pictures_of(found, ends, FOR_EXTREMES),
        groups=by_group.tables(found),
        differing=differing(settings)[:MOST_ROWS],
        with_settings=sum(each is not None for each in settings),
        command=cut(found.told.get("command") or "", 2000),
        environment=environment_of(found.told),
        notes=found.notes,
    )


def _title(found: Comparison) -> str:
    labels = [model.label for model in found.models]
    if len(labels) == 2:
        return f"{labels[1]} against {labels[0]}"
    return f"{len(labels)} models compared" if len(labels) != 1 else labels[0]


def _lead(found: Comparison) -> str:
    prompts = mapping(found.told.get("prompts"))
    seen = {index: shot.group for shots in found.shots.values() for index, shot in shots.items()}
    control = sum(group == OFF_TOPIC for group in seen.values())
    count = number(prompts.get("count"))
    asked = f" from {counted(int(count), 'prompt')}" if count is not None else ""
    source = f" ({cut(prompts['source'], 80)})" if prompts.get("source") else ""
    beside = f", and {control} of control prompts off the topic" if control else ""
    return f"{counted(len(seen) - control, 'pair')} of prompt and seed{asked}{source}{beside}, the same for every model. Intervals are 95 %."


def _headlines(wins: list[Matrix], styles: dict[str, str]) -> list[Headline]:
    """Of every model but the first, by the most independent number there is, with the judges that may say otherwise."""
    asked = [matrix for matrix in wins if matrix.metric.better > 0]
    asked = [matrix for matrix in asked if matrix is asked[0] or matrix.metric.role == "judge"][
        :MOST_JUDGES
    ]
    cells: dict[str, list[tuple[Metric, Cell]]] = {}
    for matrix in asked:
        for model, row in matrix.rows[1:]:
            cells.setdefault(model.key, []).extend(
                (matrix.metric, cell) for cell in row[:1] if cell is not None
            )
    models = {model.key: model for matrix in asked for model, _ in matrix.rows}
    return [
        Headline(models[key], styles[key], *found[0], found[1:])
        for key, found in cells.items()
        if found
    ]
