"""`directalign train RECIPE`: the main job."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, Overrides, Recipe, default_out, one_line_errors


def train(
    recipe: Recipe,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Output folder; runs/ and the recipe's name if not given."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the newest checkpoint in the output folder."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Align a model as RECIPE says, and leave weights, records and a page in one folder."""
    out = out or default_out(recipe)
    again = [
        "directalign",
        "train",
        str(recipe),
        *(f"--set={each}" for each in overrides),
        "--out",
        str(out),
        "--resume",
    ]
    with one_line_errors(debug, f"; continue with: {shlex.join(again)}"):
        from ..config.load import load_run

        run = load_run(recipe, overrides)
        from ..preflight import plan  # only now: diffusers and transformers take seconds to import
        from ..training import run as run_training

        warnings, speaks = (
            plan(run, out).warnings,
            os.environ.get("RANK", "0") == "0",
        )  # one of several processes
        for warning in warnings if speaks else ():
            typer.echo(f"warning: {warning}", err=True)
        finished = run_training(run, out, resume)
        if speaks:
            typer.echo(finished)
