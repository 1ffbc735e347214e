"""The pictures of a comparison: some prompts, drawn evenly from all groups, in every model on the same seed."""

from __future__ import annotations

from ..metrics import Metric, judging
from .album import Album, album
from .comparison_files import Comparison, Shot
from .strips import spread
from .writing import counted, of_one_image
import json
from collections import Counter
from dataclasses import dataclass


MOST_PROMPTS, MOST_PICTURES = 24, 96
"""Prompts on the page, and pictures in all: with more models fewer prompts."""
TOLD = 4
"""Numbers that stand beside a picture."""


@dataclass(frozen=True)
class Row:
    """One prompt and seed; `cells` are (file, numbers as JSON) per model, None where a model has no such image."""

    prompt: str
    seed: str
    group: str
    cells: list[tuple[str, str] | None]


@dataclass(frozen=True)
class Wall:
    """Rows of pictures, the groups among them, and how many pairs there are in all."""

    rows: list[Row]
    groups: list[str]
    count: int
    pictures: Album


def wall(comparison: Comparison, budget: int) -> Wall:
    """At most `MOST_PROMPTS` pairs, as evenly from every group as there are; rows without any readable picture are left out."""
    everywhere = Counter(index for shots in comparison.shots.values() for index in shots)
    chosen = _chosen(
        comparison,
        [
            index
            for index, count in sorted(everywhere.items())
            if count > 1 or len(comparison.models) == 1
        ],
    )
    told = _told(comparison)
    rows = [_row(comparison, index, told) for index in chosen]
    pictures = album(
        comparison.folder,
        [cell[0] for row in rows for cell in row.cells if cell],
        comparison.notes,
        budget,
    )
    kept = [row for row in rows if any(cell and cell[0] in pictures for cell in row.cells)]
    if len(everywhere) > len(kept):
        comparison.notes.append(
            f"Pictures of {len(everywhere) - len(kept):,} of {counted(len(everywhere), 'pair')} are left out, to keep the page small."
        )
    return Wall(
        kept, list(dict.fromkeys(row.group for row in kept if row.group)), len(everywhere), pictures
    )


def _chosen(comparison: Comparison, indices: list[int]) -> list[int]:
    """First one seed of every prompt, spread over each group; then the groups in turn until there are enough."""
    most = max(4, min(MOST_PROMPTS, MOST_PICTURES // max(1, len(comparison.models))))
    groups: dict[str, list[int]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    again: dict[str, list[int]] = {}
    for index in indices:
        shot = _any(comparison, index)
        place = again if seen[shot.group, shot.prompt] else groups
        seen[shot.group, shot.prompt] += 1
        place.setdefault(shot.group, []).append(index)
    queues = [spread(first, most) + again.get(group, []) for group, first in groups.items()]
    in_turn = [
        queue[place]
        for place in range(max(map(len, queues), default=0))
        for queue in queues
        if place < len(queue)
    ]
    return sorted(in_turn[:most])


def _any(comparison: Comparison, index: int) -> Shot:
    return next(shots[index] for shots in comparison.shots.values() if index in shots)


def _told(comparison: Comparison) -> list[Metric]:
    """Numbers that are worth a look beside a picture."""
    return judging(comparison.metrics.values())[:TOLD]


def _row(comparison: Comparison, index: int, told: list[Metric]) -> Row:
    shots = [comparison.shots[model.key].get(index) for model in comparison.models]
    any_shot = _any(comparison, index)
    cells = [(shot.file, _numbers(shot, told)) if shot else None for shot in shots]
    return Row(any_shot.prompt, any_shot.seed, any_shot.group, cells)


def _numbers(shot: Shot, told: list[Metric]) -> str:
    return json.dumps(
        {
            each.label: of_one_image(each, shot.numbers[each.name])
            for each in told
            if each.name in shot.numbers
        },
        ensure_ascii=False,
    )
