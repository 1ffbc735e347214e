"""The `directalign` command. Commands import what they need when they run, so that help is fast."""

import gc
import io
import os
import signal
import sys
from typing import Annotated

import typer

from .. import __version__
from ..io import bitsandbytes
from . import arena, check, evaluate, export, reward, sweep, taste, train
from .common import protect_streams

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
for command in (
    train.train,
    train.demo,
    check.check,
    sweep.sweep,
    evaluate.sample,
    evaluate.evaluate,
    evaluate.compare,
    evaluate.report,
    arena.ui,
    export.export,
    export.average,
    train.schema,
):
    app.command()(command)
app.add_typer(train.recipes, name="recipes")
app.add_typer(arena.app, name="arena")
app.add_typer(taste.app, name="taste")
app.add_typer(reward.app, name="reward")
app.add_typer(train.world, name="world")
for former in reward.RENAMED:
    app.command(former, hidden=True, context_settings=reward.ANY_ARGUMENTS)(reward.renamed(former))


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"directalign {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Align a text-to-image model with Direct-Align and SRPO.

    Start with [bold]directalign train RECIPE[/bold].
    """


def main() -> None:
    """Entry point of `directalign` and `python -m directalign`; without arguments: help."""
    for word in sys.argv[1:]:
        if any("\ud800" <= character <= "\udfff" for character in word):
            name = word.encode(errors="backslashreplace").decode()
            typer.echo(f"directalign: {name}: not Unicode; write or rename it in UTF-8", err=True)
            sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # pages of characters without arrows and frames
    _silence_libraries()
    protect_streams()
    try:
        app(sys.argv[1:] or ["--help"], prog_name="directalign")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process is ending already
        gc.freeze()  # the search for cycles among what is imported took a second


def _silence_libraries() -> None:
    """Switch off library warnings about unused parts, and progress bars without a terminal."""
    bitsandbytes.hide()
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
