"""`directalign world`: the embedded models, as folders to use elsewhere, or made again from seeds."""

from __future__ import annotations

from .common import Debug, one_line_errors
from pathlib import Path
from typing import Annotated
import typer


app = typer.Typer(no_args_is_help=True, help="The embedded world: tiny models that come with the package.")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write flux, sd, sd_v, reward and second_reward into.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Write the embedded models as complete diffusers and transformers folders."""
    with one_line_errors(debug):
        from ..toyworld.assets import export as export_models

        for written in export_models(folder):
            typer.echo(written)


@app.command()
def pictures(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder to write the pictures and captions into.", show_default=False)],
    count: Annotated[int, typer.Option(help="How many.")] = 256,
    style: Annotated[str, typer.Option(help="photo, cg, painting or anime.")] = "photo",
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    debug: Debug = False,
) -> None:
    """Draw pictures with captions, as a set of real images for offline training."""
    with one_line_errors(debug):
        from ..toyworld.assets import write_pictures

        typer.echo(write_pictures(folder, count, style, seed))


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the state of the trainings, which can be resumed.", show_default=False)],
    only: Annotated[list[str], typer.Option("--only", help="Make this part alone. Repeatable.")] = [],  # noqa: B006 (typer copies it)
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    debug: Debug = False,
) -> None:
    """Make every embedded model again from its seed; hours on a CPU."""
    with one_line_errors(debug, "; the same command continues"):
        from ..world.build import build_world

        build_world(folder, only or None, device)
