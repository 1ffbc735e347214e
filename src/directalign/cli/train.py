"""`directalign train`, `demo`, `schema` and `world`."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Debug,
    Overrides,
    Recipe,
    argument,
    default_out,
    flag,
    one_line_errors,
    option,
    seed_option,
)


def train(
    recipe: Recipe,
    overrides: Overrides = [],
    out: Annotated[Path | None, option("Output folder; default: runs/RECIPE.", "DIR")] = None,
    resume: Annotated[
        bool,
        flag("--resume", "Continue from the newest checkpoint, with the --set values of before."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Align a model as in RECIPE; write weights, metrics and a page into one folder."""
    out = out or default_out(recipe)
    again = ["directalign", "train", str(recipe), *(f"--set={each}" for each in overrides)]
    again += ["--out", str(out), "--resume"]
    with one_line_errors(debug, f"; continue with: {shlex.join(again)}"):
        from ..config.load import load_run, resumed_overrides

        if resume:
            overrides = resumed_overrides(out, overrides)
        run = load_run(recipe, overrides)
        if "RANK" not in os.environ:  # before the slow estimate; torchrun's restarts may resume
            from ..training import run_folder

            run_folder.check(out, resume)
        is_main = os.environ.get("RANK", "0") == "0"
        with _page_first_and_last(out) if is_main else nullcontext():
            from ..preflight import plan  # slow imports: diffusers
            from ..training import run as run_training

            warnings = plan(run, out).warnings
            for warning in warnings if is_main else ():
                typer.echo(f"warning: {warning}", err=True)
            finished = run_training(run, out, resume, overrides)
            if is_main:
                typer.echo(finished)


@contextmanager
def _page_first_and_last(out: Path) -> Iterator[None]:
    """Print the address of the run's page, before and after, also after an error."""
    from ..report.page import NAME

    file = out.absolute() / NAME
    typer.echo(f"page: {file.as_uri()}")
    try:
        yield
    finally:
        if file.exists():
            typer.echo(f"page: {file.as_uri()}")


def demo(
    out: Annotated[Path, option("Folder for the runs and the page.", "DIR")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """SRPO and plain Direct-Align on the embedded FLUX, four runs: two minutes on two cores."""
    with one_line_errors(debug, "; the same command continues"):
        from ..demo import demo as run_demo

        typer.echo(run_demo(out))


def schema(
    out: Annotated[Path | None, option("Output file; default: print it.", "FILE")] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of a recipe, for completion and checks in editors."""
    with one_line_errors(debug):
        from ..config.run import recipe_schema

        text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
        if out is None:
            typer.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")


world = typer.Typer(
    no_args_is_help=True, help="The toy world: tiny models that come with the package."
)


@world.command()
def export(
    folder: Annotated[
        Path, argument("Folder for flux, sd, sd_v, reward and second_reward.", "DIR")
    ],
    debug: Debug = False,
) -> None:
    """Write the embedded models as complete diffusers and transformers folders."""
    with one_line_errors(debug):
        from ..toyworld.assets import export as export_models

        for written in export_models(folder):
            typer.echo(written)


@world.command()
def images(
    folder: Annotated[Path, argument("New folder for the images.", "DIR")],
    count: Annotated[int, option("Number of images.", min=1)] = 256,
    style: Annotated[str, option("photo, cg, painting or anime.")] = "photo",
    seed: Annotated[int, seed_option("Random seed.")] = 0,
    debug: Debug = False,
) -> None:
    """Draw images with captions, as a set of real images for offline training."""
    with one_line_errors(debug):
        from ..toyworld.assets import write_pictures

        typer.echo(write_pictures(folder, count, style, seed))
