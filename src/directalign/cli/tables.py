"""The tables of `directalign check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..memory import PHASES, Estimate, Remedy, binary
from ..planning import Plan


def findings(recipe: Path, found: Plan) -> Table:
    """What the run will use."""
    table = Table(title=f"{recipe} {'can run' if found.memory.fits else 'is sound'}", show_header=False, title_justify="left")
    for name, finding in found.findings:
        table.add_row(name, finding)
    return table


def memory(needed: Estimate) -> Table:
    """What the run will need on its device, part by part and phase by phase; ~ marks what is traced, + an allowance."""
    table = Table("part", *PHASES, "what it is", title="Memory, estimated", title_justify="left")
    for column in table.columns[1:-1]:
        column.justify, column.no_wrap = "right", True
    marks = {"counted": "", "traced": "~", "allowance": "+"}
    for row in needed.rows:
        sizes = (marks[row.kind] + binary(row.sizes[phase]) if row.sizes.get(phase) else "" for phase in PHASES)
        table.add_row(row.part, *sizes, row.note)
    table.add_section()
    table.add_row("total", *(binary(needed.at(phase)) for phase in PHASES), "")
    return table


def verdict(needed: Estimate) -> str:
    """One line: the peak, its phase, and whether it fits."""
    fits = "fits" if needed.fits else "does not fit"
    return f"peak {binary(needed.peak)} in {needed.busiest}, {fits} {needed.place.name} with {binary(needed.place.capacity)}"


def changes(found: Sequence[Remedy]) -> Table:
    """What would lower the peak, each change estimated anew."""
    table = Table("change", "peak", "", title="What lowers the peak", title_justify="left")
    for remedy in found:
        table.add_row(remedy.says, binary(remedy.estimate.peak), "fits" if remedy.estimate.fits else "does not fit")
    return table
