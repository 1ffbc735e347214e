"""`metrics.jsonl`, one JSON object a line, and whoever else is told what it says (`trackers`).

    {"event": "step", "step": 7, "loss", "reward", "losses", "metrics", "grad_norm", "network_calls", "learning_rate", "levels",
     "seconds", "phases"}
    {"event": "evaluate", "step": 10, ...what the Measurer says..., "seconds"}
    {"event": "stop", "step": 30, "reason": "drift", "says", "kept": 20}      the run ended itself
    {"event": "kept", "step": 20, ...what the Measurer says of all pairs...}   the weights that are left, where the recipe has `stop`

A resumed run first forgets what lies after its checkpoint, so the file ends up as the undisturbed run's, timings aside.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import Images
from .samples import pixels_of
from .sealed import write_text
from .trackers import Tracker, tell_again, values_of

NAME = "metrics.jsonl"
TIMINGS = ("seconds", "phases")


def read(out: Path) -> list[dict[str, Any]]:
    """All whole records in `out/metrics.jsonl`, in order; a line that a crash cut short ends the list."""
    file = out / NAME
    records: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class RunLog:
    """Appends records; every line is flushed at once, so that a kill loses none."""

    def __init__(self, out: Path, step: int, forgotten: Collection[str] = (), trackers: Sequence[Tracker] = ()) -> None:
        """Continue after `step` updates: later records are dropped, and `forgotten` events; `trackers` that remember none are told the others again."""
        kept = [record for record in read(out) if record["step"] <= step and record["event"] not in forgotten]
        write_text(out / NAME, "".join(_line(record) for record in kept))
        self._stream = (out / NAME).open("a", encoding="utf-8")
        self.records = kept
        self._trackers, self._finished = trackers, False
        for tracker in trackers:
            tell_again(tracker, kept)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, which has "event" and "step"; a number that is not finite is written as null."""
        self.records.append(record)
        self._stream.write(_line(record))
        self._stream.flush()
        values = values_of(_finite(record))
        for tracker in self._trackers:
            tracker.record(values, record["step"])

    def has(self, event: str, step: int) -> bool:
        """Whether such a record is there already."""
        return any(record["event"] == event and record["step"] == step for record in self.records)

    def grid(self, step: int, picture: Images, again: bool = False) -> None:
        """Show a sample grid (1, 3, H, W) in [0, 1]; `again`: one of an earlier process, which some remember."""
        pixels = pixels_of(picture)
        for tracker in self._trackers:
            if not (again and tracker.remembers):
                tracker.picture(pixels, step)

    def summarise(self, found: Mapping[str, Any]) -> None:
        """Show what summary.json says: the run is finished."""
        self._finished = True
        for tracker in self._trackers:
            tracker.summary(found)

    def sync(self) -> None:
        """Put what was written on the disk, so that a checkpoint never outlives its records."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """End the file, and let the trackers send what is left."""
        self._stream.close()
        for tracker in self._trackers:
            tracker.close(self._finished)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
