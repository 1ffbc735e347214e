"""`directalign study`: experiments that train several runs and put them on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import one_line_errors
from .options import Debug

app = typer.Typer(no_args_is_help=True, help="Experiments of several runs on one page.")


@app.callback()
def _group() -> None:
    """Experiments of several runs on one page."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs and the page.")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """SRPO and plain Direct-Align on the embedded world, side by side: about two minutes on two cores."""
    with one_line_errors(debug):
        from ..studies.demo import demo as run_demo

        typer.echo(run_demo(out))
