"""The `directalign` command. Thin: each module holds one command, which imports what it needs only when it runs, so that help is instant."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from .. import __version__
from . import (
    arena,
    check,
    compare,
    demo,
    evaluate,
    export,
    report,
    reward,
    sample,
    schema,
    train,
    world,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(train.train)
app.command()(demo.demo)
app.command()(check.check)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(report.report)
app.command()(export.export)
app.command()(export.average)
app.command()(schema.schema)
app.add_typer(arena.app, name="arena")
app.add_typer(reward.app, name="reward")
app.add_typer(world.app, name="world")
for former in reward.RENAMED:
    app.command(former, hidden=True, context_settings=reward.ANY_ARGUMENTS)(reward.renamed(former))


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"directalign {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _whole(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Align a text-to-image model with Direct-Align and SRPO. The main job is [bold]directalign train RECIPE[/bold]."""


def main() -> None:
    """Entry point of the command and of `python -m directalign`; without any word it shows the help."""
    _quieten()
    app(sys.argv[1:] or ["--help"], prog_name="directalign")


def _quieten() -> None:
    """Keeps out what is noise around our one line: remarks on optional parts that are not used here, bars that nobody watches."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.stderr.isatty():  # at a terminal a download of gigabytes is seen to go on
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    """bitsandbytes, imported by diffusers wherever it is installed, asks for a CPU kernel of inference that training cannot use."""
    return "gemm_4bit_forward" not in record.getMessage()
