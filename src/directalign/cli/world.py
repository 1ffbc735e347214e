"""`directalign world`: the embedded models, as folders to use elsewhere, or made again from seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, one_line_errors

app = typer.Typer(
    no_args_is_help=True, help="The embedded world: tiny models that come with the package."
)


@app.command()
def export(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder to write flux, sd, sd_v, reward and second_reward into.",
            show_default=False,
        ),
    ],
    debug: Debug = False,
) -> None:
    """Write the embedded models as complete diffusers and transformers folders."""
    with one_line_errors(debug):
        from ..toyworld.assets import export as export_models

        for written in export_models(folder):
            typer.echo(written)


@app.command()
def pictures(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="New folder to write the pictures and captions into.",
            show_default=False,
        ),
    ],
    count: Annotated[int, typer.Option(help="How many.")] = 256,
    style: Annotated[str, typer.Option(help="photo, cg, painting or anime.")] = "photo",
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    debug: Debug = False,
) -> None:
    """Draw pictures with captions, as a set of real images for offline training."""
    with one_line_errors(debug):
        from ..toyworld.assets import write_pictures

        typer.echo(write_pictures(folder, count, style, seed))
