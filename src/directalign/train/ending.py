"""A run with stop rules at work: its best weights kept at each measurement, its end decided, and where it stands when it is continued.

Rank 0, which has the records, decides by `stopping.verdict`; all ranks follow, since each has its share of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import config
from . import checkpoint, kept, stopping
from .distributed import Ranks
from .log import RunLog, read
from .snapshot import Parts
from .stopping import Record, Rules, Verdict

OF_AN_END = ("stop", "kept")
"""Events of a run that is over; when it goes on after all, they are forgotten."""
NOTHING = -1
"""The updates after which nothing of a former process is kept: not even what belongs to the base model."""


@dataclass
class Stopping:
    """The rules of a run with what they are applied to; `log` is None on ranks other than 0."""

    rules: Rules
    out: Path
    ranks: Ranks
    parts: Parts
    log: RunLog | None
    lost: Collection[int] = ()
    over: bool = field(default=False, init=False)
    """Whether the run has ended itself."""

    def verdict(self) -> Verdict | None:
        """What the rules make of the run so far, on rank 0."""
        return stopping.verdict(self.rules, self.log.records, self.lost) if self.log is not None else None

    def settle(self, done: int) -> None:
        """After the measurement of update `done`, while the network wears those weights: keep them if they are the best so far, and decide."""
        found = self.verdict()
        best = found.best.step if found is not None and found.best is not None else None
        if self.ranks.any(best == done and not kept.path_of(self.out, done).exists()):
            kept.write(self.out, self.parts.parameters, done, self.ranks)
        if best is not None:
            kept.drop(self.out, {best, *self._still_chosen()})
        self.over = self.ranks.any(found is not None and ends(found, done, self.parts.run))

    def _still_chosen(self) -> set[int]:
        """The updates whose weights a run that is continued from one of the checkpoints would go on with."""
        assert self.log is not None
        chosen = set()
        for path in checkpoint.all_of(self.out / "checkpoints"):
            earlier = before(self.log.records, checkpoint.step_of(path))
            found = stopping.verdict(self.rules, earlier, self.lost).best if earlier else None
            chosen |= {found.step} if found is not None else set()
        return chosen

    def wear_best(self) -> int:
        """Put the best weights into the network, on all ranks; the update that they are of."""
        found = self.verdict()
        step = int(self.ranks.texts(str(found.best.step) if found is not None and found.best is not None else "")[0])
        kept.read(self.out, self.parts.parameters, step, self.ranks)
        return step


def ends(found: Verdict, done: int, run: config.Run) -> bool:
    """Whether the run ends itself after `done` updates: before its own end, and with weights to leave."""
    return found.ending is not None and found.best is not None and done < run.train.num_steps


def stop_record(found: Verdict, done: int) -> dict[str, Any]:
    """What metrics.jsonl says of a run that ends itself after `done` updates."""
    assert found.ending is not None and found.best is not None
    return {"event": "stop", "step": done, "reason": found.ending.reason, "says": found.ending.says, "kept": found.best.step}


@dataclass(frozen=True)
class Place:
    """Where a run that is continued stands with its rules."""

    lost: frozenset[int] = frozenset()
    """Measured updates whose weights are gone, where those that the rules would have kept are among them."""
    forgotten: tuple[str, ...] = OF_AN_END
    """Events of a former end that is none any more."""


def place_of(rules: Rules | None, run: config.Run, out: Path, done: int, say: Callable[[str], None]) -> Place:
    """What of a former process still holds after `done` updates: under the same rules all of it, under changed ones perhaps less."""
    if rules is None:
        return Place()
    there = kept.sweep(out, done if done else NOTHING, say)
    if not done:
        return Place()
    records = before(read(out), done)
    best = stopping.verdict(rules, records).best
    measured = {record["step"] for record in records if record["event"] == "evaluate"}
    lost = frozenset() if best is not None and best.step in {done, *there} else frozenset(measured - there - {done})
    found = stopping.verdict(rules, records, lost)
    over = ends(found, done, run)
    former = {event: [record for record in records if record["event"] == event] for event in OF_AN_END}
    holds = {
        "stop": over and former["stop"] == [stop_record(found, done)],
        "kept": (over or done == run.train.num_steps) and [record["step"] for record in former["kept"]] == [found.best.step if found.best else None],
    }
    return Place(lost, tuple(event for event in OF_AN_END if not holds[event]))


def before(records: Sequence[Record], step: int) -> list[Record]:
    """The records of the first `step` updates."""
    return [record for record in records if record["step"] <= step]
