"""The two tables of `directalign check`."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..memory import Estimate
from ..planning import Plan, readable


def findings(recipe: Path, found: Plan) -> Table:
    """What the run will use."""
    table = Table(title=f"{recipe} can run", show_header=False, title_justify="left")
    for name, finding in found.findings:
        table.add_row(name, finding)
    return table


def memory(needed: Estimate) -> Table:
    """What the run will need on its device, part by part; ~ marks an allowance."""
    table = Table("part", "memory", "what it is", title="Memory, estimated", title_justify="left")
    for item in needed.items:
        mark, what = ("~", f"allowance: {item.note}") if item.is_allowance else ("", item.note)
        table.add_row(item.part, mark + readable(item.size), what)
    table.add_section()
    verdict = "fits" if needed.total <= needed.capacity else "does not fit"
    table.add_row("total", f"~{readable(needed.total)}", f"{verdict} {needed.device} with {readable(needed.capacity)}")
    return table
