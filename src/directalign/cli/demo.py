"""`directalign demo`: SRPO and plain Direct-Align on the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, one_line_errors


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the runs and the page.")
    ] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """SRPO and plain Direct-Align on the embedded FLUX: about two minutes on two cores."""
    with one_line_errors(debug, "; the same command continues"):
        from ..demo import demo as run_demo

        typer.echo(run_demo(out))
