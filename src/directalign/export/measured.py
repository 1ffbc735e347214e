"""The model card's account of what was measured before and after, from summary.json, and of what was not."""

from __future__ import annotations

from typing import Any

from .. import config
from ..metrics import metric
from ..report.format import number

NOT_NUMBERS = ("step", "event", "seconds")
UNMEASURED = """Not measured: what people prefer; prompts, sizes, samplers, step counts and guidance other than the recipe's; text in images, bias and
safety. A reward that rises is what training asked for, not evidence of better images. All limits of the base model remain."""


def measured(run: config.Run, summary: dict[str, Any]) -> str:
    """A table of the first and the last measurement, how they were made, and what they leave open."""
    before, after = summary.get("before"), summary.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"Nothing: the run's records hold no measurement before and after.\n\n{UNMEASURED}"
    rows = [_row(name, before, after) for name in after if name not in NOT_NUMBERS and number(after[name]) is not None]
    table = "\n".join(["| | before | after | meaning |", "|---|---|---|---|", *rows])
    return f"{table}\n\n{_how(run)}\n\n{UNMEASURED}"


def _row(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    told = metric(name)
    direction = f" ({told.direction})" if told.direction else ""
    return f"| {name} | {_cell(before.get(name))} | {_cell(after[name])} | {told.description}{direction} |"


def _cell(value: Any) -> str:
    found = number(value)
    if found is None:
        return "-"
    if isinstance(value, dict) and {"low", "high", "n"} <= value.keys():
        return f"{found:.3f} ({value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
    return f"{found:.4g}"


def _how(run: config.Run) -> str:
    judges = {"world": "the embedded style and content judges, which training never saw", "none": "no judge: the reward and drift statistics alone"}
    return f"On {run.evaluate.num_pairs} fixed prompt-seed pairs, before and after alike, with {judges[run.evaluate.judge]}. Brackets are 95 % intervals."
