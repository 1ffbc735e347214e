"""Who is asked what next: the tasks with the fewest annotators first, in an order of one's own where they have equally many.

Those to whom a task was handed out count with those who answered it: else a crowd that asks at one moment would all be sent to the same
few. So the items gather annotators evenly, however many take part and whenever they leave. Lives in memory, rebuilt at the start.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from .blind import Blind
from .records import AXES

Mode = Literal["rate", "vote"]
Question = tuple[str, str]
"""(model, axis) in rate mode; ("", "") for the one question of a pair."""


@dataclass(frozen=True)
class Task:
    """What one screen asks: an item and the models shown, two of them in vote mode, all of them in rate mode."""

    item: int
    models: tuple[str, ...]


def tasks_of(mode: Mode, items: Sequence[int], models: Sequence[str]) -> list[Task]:
    """Every item once, or every pair of models on every item."""
    shown = [tuple(models)] if mode == "rate" else list(combinations(models, 2))
    return [Task(item, each) for item in items for each in shown]


class Agenda:
    """The state of all annotators. Not safe among threads: its owner holds a lock."""

    def __init__(self, mode: Mode, tasks: Sequence[Task], blind: Blind) -> None:
        self.tasks = tasks
        self._mode = mode
        self._blind = blind
        self._said: defaultdict[int, dict[Task, dict[Question, str]]] = defaultdict(dict)
        self._complete: Counter[Task] = Counter()
        self._handed: defaultdict[int, list[Task]] = defaultdict(list)
        self._holders: Counter[Task] = Counter()
        self._orders: dict[int, list[Task]] = {}

    def take(self, annotator: int, task: Task, question: Question, said: str | None) -> None:
        """An answer to a question of the task; None takes it back. The latest counts."""
        before = self._is_complete(annotator, task)
        answers = self._said[annotator].pop(task, {})
        answers.pop(question, None)
        if said is not None:
            answers[question] = said
        if answers:
            self._said[annotator][task] = answers  # at the end: the one answered last
        self._complete[task] += self._is_complete(annotator, task) - before

    def answers(self, annotator: int, task: Task) -> Mapping[Question, str]:
        """What the annotator said about the task so far."""
        return self._said[annotator].get(task, {})

    def done(self, annotator: int) -> int:
        """Tasks that the annotator has answered in full."""
        return sum(self._is_complete(annotator, task) for task in self._said[annotator])

    def last(self, annotator: int) -> Task | None:
        """The task answered in full most recently."""
        return next((task for task in reversed(self._said[annotator]) if self._is_complete(annotator, task)), None)

    def next(self, annotator: int, most: int) -> list[Task]:
        """Up to `most` tasks still to answer: those begun, those handed out before, then those with the fewest annotators."""
        begun = [task for task in self._said[annotator] if not self._is_complete(annotator, task)]
        held = [task for task in self._handed[annotator] if task not in begun and not self._is_complete(annotator, task)]
        line = [*begun, *held][:most]
        if len(line) < most:
            line += self._fewest(annotator, {*line}, most - len(line))
        self._hand_out(annotator, line)
        return line

    def _fewest(self, annotator: int, without: set[Task], most: int) -> list[Task]:
        order = enumerate(self._order(annotator))
        todo = ((place, task) for place, task in order if task not in without and not self._is_complete(annotator, task))
        found = heapq.nsmallest(most, ((self._complete[task] + self._holders[task], place, task) for place, task in todo), key=lambda each: each[:2])
        return [task for *_, task in found]

    def _hand_out(self, annotator: int, line: list[Task]) -> None:
        self._holders.subtract(self._handed[annotator])
        self._holders.update(line)
        self._handed[annotator] = line

    def _order(self, annotator: int) -> list[Task]:
        if annotator not in self._orders:
            self._orders[annotator] = sorted(self.tasks, key=lambda task: self._blind.token("order", annotator, task.item, *task.models))
        return self._orders[annotator]

    def _is_complete(self, annotator: int, task: Task) -> bool:
        asked = len(AXES) * len(task.models) if self._mode == "rate" else 1
        return len(self._said[annotator].get(task, ())) == asked
