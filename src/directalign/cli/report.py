"""`directalign report`: the page of a run, of several side by side, or of a comparison, made again from their records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, one_line_errors


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A run's folder, a folder of runs, or what evaluate or compare wrote.",
            show_default=False,
        ),
    ],
    debug: Debug = False,
) -> None:
    """Write the page of a run, of a folder of runs side by side, or of a comparison."""
    with one_line_errors(debug):
        from ..report import NothingToReport, write_page

        try:
            typer.echo(write_page(folder))
        except NothingToReport as error:  # the report knows none of the package, nor its errors
            from ..types import DirectAlignError

            raise DirectAlignError(str(error)) from None
