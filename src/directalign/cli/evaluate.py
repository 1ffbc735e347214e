"""`directalign evaluate`: a finished run measured against its base, as a table; the last line names the folder with the numbers of every pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .errors import one_line_errors
from .options import Debug, RunFolder


def evaluate(
    folder: RunFolder,
    num_pairs: Annotated[int | None, typer.Option(min=1, help="Prompt-seed pairs; the recipe's number if not given.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="OUT", help="Folder for the results; the run's own if not given.")] = None,
    debug: Debug = False,
) -> None:
    """Measure a finished run against its base on fixed prompts and seeds."""
    with one_line_errors(debug):
        from rich.console import Console

        from ..evaluate.compare import SUMMARY, evaluate_run

        done = evaluate_run(folder, num_pairs, out)
        Console().print(_table(json.loads((done / SUMMARY).read_text(encoding="utf-8"))), highlight=False)
        typer.echo(done)


def _table(found: Mapping[str, Any]) -> Table:
    """Base and tuned, the mean change over pairs with its 95 % interval where there is one for each pair, and the share of pairs won."""
    table = Table("", "base", "tuned", "change (95 % interval)", "wins")
    for name, tuned in found["tuned"].items():
        change = found["difference"].get(name)
        told = "" if change is None else f"{change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
        won = found["wins"].get(name)
        table.add_row(name.replace("_", " "), _number(found["base"].get(name)), _number(tuned), told, "" if won is None else f"{won['value']:.0%}")
    return table


def _number(value: Any) -> str:
    value = value.get("value") if isinstance(value, Mapping) else value
    return "" if value is None else f"{value:.4f}"
