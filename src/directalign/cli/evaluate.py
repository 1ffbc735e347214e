"""`directalign evaluate`: a finished run measured against its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        from ..evaluate.compare import evaluate_run

        typer.echo(evaluate_run(folder, num_pairs, out))
