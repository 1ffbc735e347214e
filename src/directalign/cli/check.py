"""`directalign check RECIPE`: check a recipe and estimate its memory, without weights or GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Debug,
    Overrides,
    Recipe,
    Settings,
    announce,
    default_out,
    one_line_errors,
    option,
    without_garbage_collection,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..config import RunConfig
    from ..preflight import Cost, Estimate, ModelFiles, Plan, Suggestion

MARKS = {"counted": "", "traced": "~", "allowance": "+"}


def check(
    recipe: Recipe,
    settings: Settings = [],
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
    tflops: Annotated[
        float | None,
        option(
            "Estimate the time at this rate of a GPU, in 10^12 operations a second; large "
            "networks reach a third to a half of the nominal rate.",
            "N",
            min=0.001,
        ),
    ] = None,
    pcie: Annotated[
        float | None,
        option(
            "With model.block_swap: 10^9 bytes a second from main memory to a GPU; 20 if not "
            "given, which PCIe 4.0 x16 reaches.",
            "N",
            min=0.001,
        ),
    ] = None,
    per_node: Annotated[
        int | None, option("Processes on each node; torchrun's own number, else 8.", "N", min=1)
    ] = None,
    within_node: Annotated[
        float | None,
        option(
            "On several ranks: 10^9 bytes a second into a GPU; 350 if not given, which NVLink 4 "
            "reaches.",
            "N",
            min=0.001,
        ),
    ] = None,
    between_nodes: Annotated[
        float | None,
        option(
            "10^9 bytes a second into a node; 320 if not given, for eight cards of 400 Gbit/s.",
            "N",
            min=0.001,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every part of the memory too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check a recipe and its files, estimate memory, disk and time. Loads no weights."""
    with one_line_errors(debug), without_garbage_collection():
        from ..config.load import load_run

        run = load_run(recipe, [*overrides, *settings])
        announce(f"checking {recipe}")
        from rich.console import Console

        from ..preflight import a_gpu, survey, this_machine  # slow imports: diffusers

        place = a_gpu(gpu_memory, ranks) if gpu_memory is not None else this_machine(ranks)
        place = replace(place, per_node=per_node or 0)
        found = survey(run, out or default_out(recipe), place)
        console = Console()
        rates = pcie, within_node, between_nodes
        for part in report(recipe, run, found, tflops, verbose, *rates):
            console.print(part, highlight=False)
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)


def report(
    recipe: Path,
    run: RunConfig,
    found: Plan,
    teraflops: float | None,
    verbose: bool,
    pcie: float | None = None,
    within: float | None = None,
    between: float | None = None,
) -> Iterator[Table | str]:
    """The peak and that of each phase, what lowers it if it does not fit, then the run."""
    from ..preflight import binary, suggestions

    memory = found.memory
    yield f"{recipe} {'can run' if memory.fits else 'is valid'}"
    peak, fits = binary(memory.peak), "fits" if memory.fits else "does not fit"
    has = f"{memory.place.name} with {binary(memory.place.capacity)}"
    yield f"peak {peak} in {memory.busiest}, {fits} {has}"
    yield phase_table(memory)
    if not memory.fits:
        announce("looking for changes that lower the peak")
        yield suggestion_table(suggestions(run, memory.place))
    rows = _table("", "", title="The run", show_header=False)
    time = _time(found.cost, teraflops, pcie, within, between)
    for name, finding in (*found.findings, *_files(found.files), *time):
        rows.add_row(name, finding)
    yield rows
    if verbose:
        yield memory_table(memory)
        yield notes_table(memory)


def _table(*columns: str, **settings: Any) -> Table:
    """A table without frames, which leaves 80 columns to the text; the last column wraps."""
    from rich.table import Table

    table = Table(*columns, box=None, title_justify="left", padding=(0, 2, 0, 0), **settings)
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def phase_table(memory: Estimate) -> Table:
    """The estimated peak of each phase, and its two largest parts."""
    from ..preflight import PHASES, binary

    table = _table("phase", "memory", "largest parts", title="Memory by phase, estimated")
    table.columns[1].justify = "right"
    for phase in PHASES:
        rows = [row for row in memory.rows if row.sizes.get(phase)]
        largest = sorted(rows, key=lambda row: -row.sizes[phase])[:2]
        parts = "; ".join(f"{row.part} {binary(row.sizes[phase])}" for row in largest)
        style = "bold" if phase == memory.busiest else None
        table.add_row(phase, binary(memory.at(phase)), parts, style=style)
    return table


def suggestion_table(lower: Sequence[Suggestion]) -> Table | str:
    """The changes, best first."""
    from ..preflight import binary

    if not lower:
        return (
            "What lowers the peak: no setting of the recipe; use a smaller model or a larger GPU."
        )
    table = _table("peak", "", "change", title="What lowers the peak")
    for each in lower:
        fits = "fits" if each.estimate.fits else "does not fit"
        table.add_row(binary(each.estimate.peak), fits, each.change)
    return table


def _files(files: Sequence[ModelFiles]) -> Iterator[tuple[str, str]]:
    from ..preflight import binary

    missing = sum(each.missing for each in files)
    for each in files:
        size = f", about {binary(each.missing)}" if each.missing else ""
        yield "file", f"{each.path}: {'here' if each.is_here else f'to be downloaded{size}'}"
    if missing:
        yield "download", f"about {binary(missing)} in all"


def _flop(count: float) -> str:
    for factor, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e9:,.1f} GFLOP"


def _time(
    cost: Cost | None,
    teraflops: float | None,
    pcie: float | None,
    within: float | None,
    between: float | None,
) -> Iterator[tuple[str, str]]:
    from ..preflight import BETWEEN, PCIE, WITHIN, binary

    if cost is None:
        return
    rate, within, between = pcie or PCIE, within or WITHIN, between or BETWEEN
    parts = ", ".join(f"{part} {_flop(n)}" for part, n in cost.parts.items() if n)
    yield "an update", f"{_flop(cost.update)}: {parts}"
    yield "100 updates", _flop(100 * cost.update)
    if cost.copied:
        copying = _duration(cost.copied / rate / 3.6e12)
        yield (
            "block swap",
            f"{binary(cost.copied)} copied to the device for an update, {copying} at {rate:g} "
            "GB/s, while the denoiser computes",
        )
    if cost.within or cost.between:
        way = "while the denoiser computes" if cost.sharded else "after the backward pass"
        places = (cost.within, within, "a GPU"), (cost.between, between, "a node from others")
        sizes = " and ".join(
            f"{binary(size)} into {place} at {network:g} GB/s"
            for size, network, place in places
            if size
        )
        yield (
            "other ranks",
            f"{sizes} for an update, {cost.receiving(within, between):.1f} s, {way}",
        )
    work = f"{_flop(cost.training)} to train, {_flop(cost.measuring)} to measure"
    if teraflops is None:
        yield "time", f"{work}; --tflops gives an estimate"
    else:
        hundred, whole = (
            _duration(hours) for hours in cost.hours(teraflops, rate, within, between)
        )
        yield (
            "time",
            f"about {hundred} for 100 updates, {whole} in all at {teraflops:g} TFLOPS (estimate): "
            f"{work}",
        )


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def memory_table(needed: Estimate) -> Table:
    """Memory by part and phase; ~ marks traced activations, + allowances."""
    from ..preflight import PHASES, binary

    table = _table("part", *PHASES, title="Memory by part, estimated (~ traced, + allowance)")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in needed.rows:
        sizes = (row.sizes.get(phase) for phase in PHASES)
        cells = (MARKS[row.kind] + binary(size) if size else "" for size in sizes)
        table.add_row(row.part, *cells)
    table.add_row("total", *(binary(needed.at(phase)) for phase in PHASES), style="bold")
    return table


def notes_table(needed: Estimate) -> Table:
    """What each part is."""
    table = _table("part", "what it is", title="Parts")
    for row in needed.rows:
        table.add_row(row.part, row.note)
    return table
