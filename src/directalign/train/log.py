"""`metrics.jsonl`, one JSON object a line, and TensorBoard as a mirror of it.

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
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..types import Images
from .sealed import write_text

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

    def __init__(self, out: Path, step: int, forgotten: Collection[str] = ()) -> None:
        """Continue after `step` updates: later records are dropped, and `forgotten` events; TensorBoard is written anew from the others."""
        kept = [record for record in read(out) if record["step"] <= step and record["event"] not in forgotten]
        write_text(out / NAME, "".join(_line(record) for record in kept))
        self._stream = (out / NAME).open("a", encoding="utf-8")
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        self._board = SummaryWriter(str(out / "tensorboard"))
        self.records = kept
        for record in kept:
            self._mirror(record)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, which has "event" and "step"; a number that is not finite is written as null."""
        self.records.append(record)
        self._stream.write(_line(record))
        self._stream.flush()
        self._mirror(record)

    def has(self, event: str, step: int) -> bool:
        """Whether such a record is there already."""
        return any(record["event"] == event and record["step"] == step for record in self.records)

    def grid(self, step: int, picture: Images) -> None:
        """Show a sample grid (1, 3, H, W) in TensorBoard."""
        self._board.add_images("samples", picture, step)

    def sync(self) -> None:
        """Put what was written on the disk, so that a checkpoint never outlives its records."""
        os.fsync(self._stream.fileno())
        self._board.flush()

    def close(self) -> None:
        """End both files."""
        self._stream.close()
        self._board.close()

    def _mirror(self, record: Mapping[str, Any]) -> None:
        for name, value in _scalars(record, record["event"]):
            self._board.add_scalar(name, value, record["step"])


def _scalars(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """All numbers in a record under slash-joined names; lists (levels) are for the page, not for TensorBoard."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("event", "step"):
                yield from _scalars(inner, f"{name}/{key}")
    elif isinstance(value, (int, float)):
        yield name, float(value)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
