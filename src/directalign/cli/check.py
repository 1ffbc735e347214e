"""`directalign check RECIPE`: what can be known before any weight is loaded, as two tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import one_line_errors
from .options import Debug, Overrides, Recipe, default_out


def check(
    recipe: Recipe,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The output folder that the run would have.")] = None,
    debug: Debug = False,
) -> None:
    """Check a recipe, its files and prompts, and estimate memory and disk, without loading any weight."""
    with one_line_errors(debug):
        from ..config_loading import load_run

        run = load_run(recipe, overrides)
        from rich.console import Console

        from ..planning import plan  # only now: diffusers and transformers take seconds to import
        from .tables import findings, memory

        found = plan(run, out or default_out(recipe))
        Console().print(findings(recipe, found), memory(found.memory), highlight=False)
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
