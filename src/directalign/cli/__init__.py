"""The `directalign` command. Thin: each module holds one command, which imports what it needs only when it runs, so that help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import check, evaluate, report, sample, schema, study, train, world

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(train.train)
app.command()(check.check)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(schema.schema)
app.add_typer(study.app, name="study")
app.add_typer(world.app, name="world")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"directalign {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _bare(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Align a text-to-image model with Direct-Align and SRPO. The main job is [bold]directalign train RECIPE[/bold]."""
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the command and of `python -m directalign`."""
    app(prog_name="directalign")
