"""The `directalign` command. Thin: each module holds one command, which imports what it needs only when it runs, so that help is instant."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from .. import __version__
from . import check, evaluate, export, report, sample, schema, study, train, world

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(train.train)
app.command()(check.check)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(export.export)
app.command()(schema.schema)
app.add_typer(study.app, name="study")
app.add_typer(world.app, name="world")


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"directalign {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _whole(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False) -> None:
    """Align a text-to-image model with Direct-Align and SRPO. The main job is [bold]directalign train RECIPE[/bold]."""


def main() -> None:
    """Entry point of the command and of `python -m directalign`; without any word it shows the help."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their remarks on missing optional parts are noise around our one line
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app(sys.argv[1:] or ["--help"], prog_name="directalign")
