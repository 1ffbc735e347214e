"""`directalign check RECIPE`: check a recipe and estimate its memory, without weights or GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    Debug,
    Overrides,
    Recipe,
    default_out,
    one_line_errors,
    option,
    without_garbage_collection,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..preflight import Estimate, Plan, Suggestion

MARKS = {"counted": "", "traced": "~", "allowance": "+"}


def check(
    recipe: Recipe,
    overrides: Overrides = [],
    out: Annotated[Path | None, option("The output folder of the run.", "DIR")] = None,
    gpu_memory: Annotated[
        float | None,
        option("Plan for a GPU of this size instead of this machine, e.g. 24.", "GB", min=0),
    ] = None,
    ranks: Annotated[
        int | None,
        option("Plan for this many processes; torchrun's own number if not given.", "N", min=1),
    ] = None,
    debug: Debug = False,
) -> None:
    """Check a recipe and its files, estimate memory and disk. Loads and downloads no weights."""
    with one_line_errors(debug), without_garbage_collection():
        from ..config.load import load_run

        run = load_run(recipe, overrides)
        from rich.console import Console

        from ..preflight import a_gpu, suggestions, survey, this_machine  # slow imports: diffusers

        place = a_gpu(gpu_memory, ranks) if gpu_memory is not None else this_machine(ranks)
        found = survey(run, out or default_out(recipe), place)
        lower = [] if found.memory.fits else suggestions(run, place)
        console = Console()
        for part in report(recipe, found, lower):
            console.print(part, highlight=False)
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)


def report(recipe: Path, found: Plan, lower: list[Suggestion]) -> Iterator[Table | str]:
    """What the run will use, its memory, and what lowers the peak if it does not fit."""
    from rich.table import Table

    from ..preflight import binary

    memory = found.memory
    title = f"{recipe} {'can run' if memory.fits else 'is valid'}"
    findings = Table(title=title, show_header=False, title_justify="left")
    for name, finding in found.findings:
        findings.add_row(name, finding)
    yield findings
    yield memory_table(memory)
    peak, fits = binary(memory.peak), "fits" if memory.fits else "does not fit"
    has = f"{memory.place.name} with {binary(memory.place.capacity)}"
    yield f"peak {peak} in {memory.busiest}, {fits} {has}"
    if lower:
        changes = Table("change", "peak", "", title="What lowers the peak", title_justify="left")
        for each in lower:
            fits = "fits" if each.estimate.fits else "does not fit"
            changes.add_row(each.change, binary(each.estimate.peak), fits)
        yield changes
    elif not memory.fits:
        yield (
            "What lowers the peak: no setting of the recipe; use a smaller model or a larger GPU."
        )


def memory_table(needed: Estimate) -> Table:
    """Memory by part and phase; ~ marks traced activations, + allowances."""
    from rich.table import Table

    from ..preflight import PHASES, binary

    table = Table("part", *PHASES, "what it is", title="Memory, estimated", title_justify="left")
    table.columns[0].min_width = len("transformer")
    for column in table.columns[1:-1]:
        column.justify, column.no_wrap = "right", True
    for row in needed.rows:
        sizes = (row.sizes.get(phase) for phase in PHASES)
        cells = (MARKS[row.kind] + binary(size) if size else "" for size in sizes)
        table.add_row(row.part, *cells, row.note)
    table.add_section()
    table.add_row("total", *(binary(needed.at(phase)) for phase in PHASES), "")
    return table
