"""`directalign check RECIPE`: what can be known before any weight is loaded, as tables; without weights, network or GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, Overrides, Recipe, default_out, one_line_errors

NOTHING_LEFT = "What lowers the peak: nothing in the recipe that is known here; take a smaller model, or a larger GPU."


def check(
    recipe: Recipe,
    overrides: Overrides = [],  # noqa: B006 (typer copies it)
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The output folder that the run would have.")
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="GB",
            help="Plan for a GPU of this size instead of this machine, e.g. 24.",
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Plan for this many processes; torchrun's own number if not given.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Check a recipe, its files and prompts, and estimate memory and disk, without loading or downloading any weight."""
    with one_line_errors(debug):
        from ..config.load import load_run

        run = load_run(recipe, overrides)
        from rich.console import Console

        from ..preflight import a_gpu, suggestions, survey, this_machine
        from .common import changes, findings, memory, verdict

        place = a_gpu(gpu_memory, ranks) if gpu_memory is not None else this_machine(ranks)
        found = survey(run, out or default_out(recipe), place)
        console = Console()
        console.print(
            findings(recipe, found), memory(found.memory), verdict(found.memory), highlight=False
        )
        if not found.memory.fits:
            lower = suggestions(run, place)
            console.print(changes(lower) if lower else NOTHING_LEFT, highlight=False)
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
