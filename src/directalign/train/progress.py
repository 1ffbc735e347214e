"""The live line of a run: step, reward, judge, drift, use of its budget, gradient norm, seconds left; plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

NUM_PLAIN_LINES = 20
"""About so many lines a run prints into a file."""


class Display:
    """A context in which `show` and `say` write; a rank other than 0 stays silent."""

    def __init__(self, num_steps: int, step: int, console: Console, silent: bool = False) -> None:
        self.num_steps, self.console, self.silent = num_steps, console, silent
        self.live = console.is_terminal and not silent
        self._values: dict[str, float] = {}
        self._budget = ""
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[values]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not self.live)
        self._task = self._bar.add_task("train", total=num_steps, completed=step, values="")
        self._seconds: list[float] = []

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step's record; without a terminal only some steps get a line."""
        self._values |= {key: record[key] for key in ("reward", "grad_norm") if record[key] is not None}
        self._seconds = [*self._seconds[-19:], record["seconds"]]
        step = record["step"]
        self._bar.update(self._task, completed=step, values=self._text())
        if not self.live and (step % max(self.num_steps // NUM_PLAIN_LINES, 1) == 0 or step == self.num_steps):
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
        return "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in self._values.items()) + self._budget
