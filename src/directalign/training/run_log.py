"""What a run logs: `metrics.jsonl` (one JSON object per line), trackers, live line, sample grids.

    {"event": "step", "step": 7, "loss", "reward", "losses", "metrics", "grad_norm", "nfe",
     "learning_rate", "levels", "seconds", "phases", "resources"}
    {"event": "evaluate", "step": 10, ...metrics..., "seconds"}
    {"event": "references", "step": 0, "best", "rows": [{"kind", "label", "phrase", ...metrics...}]}
    {"event": "stop", "step": 30, "reason": "drift", "says", "kept": 20}  a rule ended the run
    {"event": "kept", "step": 20, ...metrics of all samples...}           the exported weights

The last two exist with `early_stopping` only. A resumed run first drops the records beyond its
checkpoint, so the file ends up as that of an uninterrupted run, except for timings.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from torch import Tensor

from ..data.image_io import Unreadable, read_pixels
from ..io.atomic import write_text
from ..io.tensors import to_pixels
from ..report.status import seconds_left
from ..types import DirectAlignError, Images
from .trackers import Tracker, values_of

logger = logging.getLogger(__name__)
CONSOLE = Console()
NAME = "metrics.jsonl"
TIMINGS = ("seconds", "phases", "resources")
"""What differs between two runs that are otherwise equal."""
NUM_SAMPLES, COLUMNS = 8, 4
"""Images per sample grid, at most, and images per row."""


class ConsoleHandler(logging.Handler):
    """Prints log messages above the live line; warnings get the prefix `warning:`."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        CONSOLE.print(prefix + record.getMessage(), highlight=False, markup=False, soft_wrap=True)


def configure_logging(is_main: bool, is_shown: bool = True) -> None:
    """Let the package log to the console on rank 0, warnings alone unless `is_shown`; other ranks
    log nothing."""
    package = logging.getLogger("directalign")
    if not any(isinstance(handler, ConsoleHandler) for handler in package.handlers):
        package.addHandler(ConsoleHandler())
    shown = logging.INFO if is_shown else logging.WARNING
    package.setLevel(shown if is_main else logging.CRITICAL)


class Record(BaseModel):
    """A line of the log; metrics have names of their own."""

    model_config = ConfigDict(extra="allow")
    event: str
    step: int
    during: dict[str, Any] | None = None
    each: dict[str, list[float | None]] | None = None


class StepRecord(Record):
    """A step."""

    loss: float | None = None
    reward: float | None = None
    grad_norm: float | None = None
    seconds: float = 0.0


def read(out: Path) -> list[dict[str, Any]]:
    """The records in `out/metrics.jsonl`, in order; a last line without its end is left out.

    Raises: DirectAlignError for any other line that is no record.
    """
    file = out / NAME
    *lines, torn = file.read_bytes().split(b"\n") if file.exists() else [b""]
    records: list[dict[str, Any]] = []
    for number, line in enumerate((*lines, torn), start=1):
        try:
            kind = StepRecord if Record.model_validate_json(line).event == "step" else Record
            kind.model_validate_json(line, strict=True)
            records.append(json.loads(line))
        except ValidationError as error:
            if number <= len(lines):
                first = error.errors()[0]
                reason = ": ".join([*map(str, first["loc"]), first["msg"]])
                raise DirectAlignError(
                    f"{file}:{number}: not a record of this run ({reason}); restore the file from "
                    "a copy, or remove this line; nothing has been changed"
                ) from error
    return records


def require_updates(out: Path, done: int) -> None:
    """Raise DirectAlignError unless all updates up to step `done` are recorded."""
    lacking = {*range(1, done + 1)} - {r["step"] for r in read(out) if r["event"] == "step"}
    if lacking:
        raise DirectAlignError(
            f"{out / NAME}: lacks {len(lacking)} of the {done} updates before the checkpoint, "
            f"first {min(lacking)}; restore the file from a copy"
        )


def drop(out: Path, event: str, step: int) -> None:
    """Remove the records of an event at a step from `out/metrics.jsonl`."""
    kept = [r for r in read(out) if (r["event"], r["step"]) != (event, step)]
    write_text(out / NAME, "".join(_line(record) for record in kept))


def last(records: Sequence[Mapping[str, Any]], event: str) -> Mapping[str, Any] | None:
    """The last record of an event, None if there is none."""
    return next((record for record in reversed(records) if record["event"] == event), None)


class RunLog:
    """Appends records to metrics.jsonl, each flushed at once, and passes them to the trackers."""

    def __init__(
        self, out: Path, step: int, dropped: Collection[str] = (), trackers: Sequence[Tracker] = ()
    ) -> None:
        """Continue after `step` finished steps: later records and `dropped` events are removed.

        Trackers without history get the other records again.
        """
        found = read(out)
        self.records = [r for r in found if r["step"] <= step and r["event"] not in dropped]
        write_text(out / NAME, "".join(_line(record) for record in self.records))
        self._stream = (out / NAME).open("a", encoding="utf-8")
        self._trackers, self._finished = trackers, False
        for tracker in trackers:
            for record in self.records if not tracker.has_history else ():
                tracker.log_values(values_of(record), record["step"])

    def write(self, record: dict[str, Any]) -> None:
        """Append a record with "event" and "step"; numbers that are not finite become null."""
        self.records.append(record)
        self._stream.write(_line(record))
        self._stream.flush()
        values = values_of(_finite(record))
        for tracker in self._trackers:
            tracker.log_values(values, record["step"])

    def has(self, event: str, step: int) -> bool:
        """Whether there is a record of this event and step."""
        return any(record["event"] == event and record["step"] == step for record in self.records)

    def write_once(self, record: dict[str, Any]) -> None:
        """Append a record unless there is one of the same event and step."""
        if not self.has(record["event"], record["step"]):
            self.write(record)

    def grid(self, step: int, grid: Images, is_replay: bool = False) -> None:
        """Log a sample grid (1, 3, H, W) in [0, 1]; `is_replay`: one of an earlier process."""
        pixels = to_pixels(grid[0], "sample grid")
        for tracker in self._trackers:
            if not (is_replay and tracker.has_history):
                tracker.log_image(pixels, step)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Log the content of summary.json: the run is finished."""
        self._finished = True
        for tracker in self._trackers:
            tracker.log_summary(summary)

    def sync(self) -> None:
        """fsync, so that a checkpoint never outlives its records."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file and the trackers."""
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


class Display:
    """The live progress line, or one line per step without a terminal; nothing with `silent`.

    Step, bar and time left come first; what does not fit a narrow terminal is cut at the end.
    `every`: steps between two measurements, 0 without.
    """

    def __init__(
        self, num_steps: int, step: int, console: Console, silent: bool = False, every: int = 0
    ) -> None:
        self.num_steps, self.console, self.silent, self.every = num_steps, console, silent, every
        self.live = console.is_terminal and not silent
        self._values: dict[str, float] = {}
        self._measured: dict[str, float] = {}
        self._budget = ""
        self._seconds: tuple[list[float], list[float]] = [], []  # of steps, of measurements
        whole, rest = Column(no_wrap=True), Column(no_wrap=True, ratio=1)
        self._bar = Progress(
            TextColumn("step", table_column=whole),
            MofNCompleteColumn(table_column=whole),
            BarColumn(bar_width=12, table_column=whole),
            TextColumn("{task.fields[left]}", table_column=whole),
            TextColumn("{task.fields[values]}", table_column=rest),
            console=console,
            disable=not self.live,
            expand=True,
        )
        start = {"total": num_steps, "completed": step, "values": "", "left": ""}
        self._task = self._bar.add_task("train", **start)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self, record: Mapping[str, Any]) -> None:
        """Display a step's record."""
        used = record.get("resources", {})
        found = {"reward": record["reward"], "grad_norm": record["grad_norm"]}
        found |= {"images/s": used.get("images_per_second"), "GiB": used.get("peak_memory_gib")}
        found["TFLOP/s"] = used.get("teraflops")
        self._values = {name: value for name, value in found.items() if value is not None}
        self._seconds[0].append(record["seconds"])
        step = record["step"]
        left = seconds_left(step, self.num_steps, self.every, *self._seconds)
        self._update(completed=step, left=f"{duration(left)} left")
        self._print(f"step {step}/{self.num_steps}  {duration(left)} left  {_text(self._values)}")

    def evaluation(self, record: Mapping[str, Any], used: Mapping[str, float]) -> None:
        """Display an evaluation's main metrics, and the most `used` share of a budget."""
        if record["step"]:  # the base model is measured on more samples
            self._seconds[1].append(record.get("seconds", 0.0))
        if used:
            worst = max(used, key=lambda name: used[name])
            self._budget = f"  budget {used[worst]:.0%} used ({worst.replace('_', ' ')})"
        self._measured = {}
        for key in ("photo_rate", "content", "color_drift"):
            value = record.get(key)
            value = value.get("value") if isinstance(value, Mapping) else value
            if value is not None:
                self._measured[key] = value
        self._update()
        self._print(f"evaluated at step {record['step']}  {_text(self._measured)}{self._budget}")

    def _update(self, **fields: Any) -> None:
        values = f"{_text(self._values)}  {_text(self._measured)}{self._budget}"
        self._bar.update(self._task, values=values.strip(), **fields)

    def _print(self, text: str) -> None:
        if not self.live and not self.silent:
            self.console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """42 s, 12 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _text(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in values.items())


def tiled(images: Sequence[Tensor] | Tensor) -> Images:
    """Images (3, H, W) in rows of `COLUMNS`, the last row filled with white."""
    columns = min(COLUMNS, len(images))
    cells = [*images, *[torch.ones_like(images[0])] * (-len(images) % columns)]
    rows = [torch.cat(cells[i : i + columns], dim=2) for i in range(0, len(cells), columns)]
    return torch.cat(rows, dim=1)[None]


def grid_path(out: Path, step: int) -> Path:
    """`samples/step-000040.png` for step 40."""
    return out / "samples" / f"step-{step:06d}.png"


def describe_grids(out: Path, prompts: Sequence[str]) -> None:
    """Write `samples/samples.json`: prompt and seed of each cell of the grids, row by row."""
    (out / "samples").mkdir(exist_ok=True)
    cells = {"prompts": list(prompts), "seeds": list(range(len(prompts))), "columns": COLUMNS}
    text = json.dumps(cells, ensure_ascii=False, indent=1) + "\n"
    write_text(out / "samples" / "samples.json", text)


def load_grid(file: Path) -> Images | None:
    """The grid (1, 3, H, W) of a PNG file; None with a warning if it is damaged."""
    try:
        return torch.from_numpy(read_pixels(file)).permute(2, 0, 1)[None]
    except Unreadable as error:
        logger.warning(f"{file}: damaged ({error}), removed")
        return None
