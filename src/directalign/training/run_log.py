"""What a run logs: `metrics.jsonl` (one JSON object a line) and the trackers, the live line, sample grids.

    {"event": "step", "step": 7, "loss", "reward", "losses", "metrics", "grad_norm", "nfe", "learning_rate", "levels",
     "seconds", "phases"}
    {"event": "evaluate", "step": 10, ...the Measurer's numbers..., "seconds"}
    {"event": "stop", "step": 30, "reason": "drift", "says", "kept": 20}      a stop rule ended the run
    {"event": "kept", "step": 20, ...the Measurer's numbers on all pairs...}   the exported weights, where the recipe has `stop`

A resumed run first drops the records beyond its checkpoint, so the file ends up as that of an uninterrupted run, timings aside.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .. import config
from ..evaluation.generate import generate
from ..interfaces import SINGLE_PROCESS, Model, ProcessGroup
from ..io.atomic import partial_of, write_text
from ..types import Images
from .trackers import Tracker, values_of

CONSOLE = Console()
NAME = "metrics.jsonl"
TIMINGS = ("seconds", "phases")


class ConsoleHandler(logging.Handler):
    """Prints log messages to the console above the live line; warnings get the prefix `warning:`."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        CONSOLE.print(prefix + record.getMessage(), highlight=False, markup=False, soft_wrap=True)


def configure_logging(is_main: bool) -> None:
    """Let the package log to the console on rank 0; other ranks log nothing."""
    package = logging.getLogger("directalign")
    if not any(isinstance(handler, ConsoleHandler) for handler in package.handlers):
        package.addHandler(ConsoleHandler())
    package.setLevel(logging.INFO if is_main else logging.CRITICAL)


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

    def __init__(
        self,
        out: Path,
        step: int,
        forgotten: Collection[str] = (),
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Continue after `step` updates: later records are dropped, and `forgotten` events; `trackers` that remember none are told the others again."""
        kept = [
            record
            for record in read(out)
            if record["step"] <= step and record["event"] not in forgotten
        ]
        write_text(out / NAME, "".join(_line(record) for record in kept))
        self._stream = (out / NAME).open("a", encoding="utf-8")
        self.records = kept
        self._trackers, self._finished = trackers, False
        for tracker in trackers:
            for record in kept if not tracker.has_history else ():
                tracker.log_values(values_of(record), record["step"])

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, which has "event" and "step"; a number that is not finite is written as null."""
        self.records.append(record)
        self._stream.write(_line(record))
        self._stream.flush()
        values = values_of(_finite(record))
        for tracker in self._trackers:
            tracker.log_values(values, record["step"])

    def has(self, event: str, step: int) -> bool:
        """Whether such a record is there already."""
        return any(record["event"] == event and record["step"] == step for record in self.records)

    def write_once(self, record: dict[str, Any]) -> None:
        """Append a record unless there is one of the same event and step."""
        if not self.has(record["event"], record["step"]):
            self.write(record)

    def grid(self, step: int, picture: Images, again: bool = False) -> None:
        """Show a sample grid (1, 3, H, W) in [0, 1]; `again`: one of an earlier process, which some remember."""
        pixels = pixels_of(picture)
        for tracker in self._trackers:
            if not (again and tracker.has_history):
                tracker.log_image(pixels, step)

    def summarise(self, found: Mapping[str, Any]) -> None:
        """Show what summary.json says: the run is finished."""
        self._finished = True
        for tracker in self._trackers:
            tracker.log_summary(found)

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


NUM_PLAIN_LINES = 20
"""About so many lines a run prints into a file."""


class Display:
    """A context in which `show` and `say` write; a rank other than 0 stays silent."""

    def __init__(self, num_steps: int, step: int, console: Console, silent: bool = False) -> None:
        self.num_steps, self.console, self.silent = num_steps, console, silent
        self.live = console.is_terminal and not silent
        self._values: dict[str, float] = {}
        self._budget = ""
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not self.live)
        self._task = self._bar.add_task("train", total=num_steps, completed=step, values="")
        self._seconds: list[float] = []

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step's record; without a terminal only some steps get a line."""
        self._values |= {
            key: record[key] for key in ("reward", "grad_norm") if record[key] is not None
        }
        self._seconds = [*self._seconds[-19:], record["seconds"]]
        step = record["step"]
        self._bar.update(self._task, completed=step, values=self._text())
        if not self.live and (
            step % max(self.num_steps // NUM_PLAIN_LINES, 1) == 0 or step == self.num_steps
        ):
            left = (self.num_steps - step) * sum(self._seconds) / len(self._seconds)
            self.say(f"step {step}/{self.num_steps}  {self._text()}  {left:.0f} s left")

    def measured(self, record: Mapping[str, Any], used: Mapping[str, float] | None = None) -> None:
        """Show a measurement: from now on the line carries the judge's photo rate, the colour drift and the most `used` of the drift budgets too."""
        if used:
            worst = max(used, key=lambda name: used[name])
            self._budget = f"  budget {used[worst]:.0%} used ({worst.replace('_', ' ')})"
        for key in ("photo_rate", "content", "color_drift"):
            value = record.get(key)
            value = value.get("value") if isinstance(value, Mapping) else value
            if value is not None:
                self._values[key] = value
        self._bar.update(self._task, values=self._text())
        if not self.live:
            self.say(f"measured at step {record['step']}  {self._text()}")

    def say(self, text: str) -> None:
        """One line above the live display."""
        if not self.silent:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _text(self) -> str:
        return (
            "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in self._values.items())
            + self._budget
        )


NUM_SAMPLES = 8
COLUMNS = 4


def sample_grid(
    model: Model,
    run: config.RunConfig,
    prompts: Sequence[str],
    together: ProcessGroup = SINGLE_PROCESS,
) -> Images:
    """(1, 3, rows·H, columns·W) in [0, 1], on the CPU: the prompts in order, with seeds 0, 1, 2, ... whatever the run's own seed."""
    return tiled(
        generate(
            model, prompts, range(len(prompts)), run.rollout, run.evaluate.batch_size, together
        )
    )


def tiled(images: Sequence[Tensor] | Tensor) -> Images:
    """Images (3, H, W) side by side, `COLUMNS` a row, the last row filled up with white."""
    columns = min(COLUMNS, len(images))
    blanks = [torch.ones_like(images[0])] * (-len(images) % columns)
    cells = [*images, *blanks]
    rows = [
        torch.cat(cells[start : start + columns], dim=2) for start in range(0, len(cells), columns)
    ]
    return torch.cat(rows, dim=1)[None]


def grid_path(out: Path, step: int) -> Path:
    """`samples/step-000040.png` for step 40."""
    return out / "samples" / f"step-{step:06d}.png"


def describe_grids(out: Path, prompts: Sequence[str]) -> None:
    """Write `samples/samples.json`: which prompt and seed each cell of the grids has, row by row."""
    (out / "samples").mkdir(exist_ok=True)
    told = {"prompts": list(prompts), "seeds": list(range(len(prompts))), "columns": COLUMNS}
    write_text(
        out / "samples" / "samples.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    )


def save_grid(picture: Images, file: Path) -> None:
    """Write a grid as PNG, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(file)
    Image.fromarray(pixels_of(picture)).save(partial, format="PNG")
    partial.replace(file)


def pixels_of(picture: Images) -> UInt8[np.ndarray, "H W 3"]:
    """A grid as eight-bit levels."""
    return (picture[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def load_grid(file: Path) -> Images:
    """A grid that `save_grid` wrote."""
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 255
