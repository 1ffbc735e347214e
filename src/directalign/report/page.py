"""`write_page(folder)`: one self-contained HTML file about a run, a comparison of models, or a folder of runs side by side."""

from __future__ import annotations

from . import comparison_page, run_page, runs_page
from .collect import is_run, read_run, run_folders, told_apart
from .comparison_files import is_comparison
from .rendering import TEMPLATES
from pathlib import Path


__all__ = ["NAME", "TEMPLATES", "NothingToReport", "write_page"]
NAME = "report.html"


class NothingToReport(ValueError):
    """A folder without a run or a comparison; the message says what to give instead."""


def write_page(folder: Path) -> Path:
    """Write `folder/report.html` and return its path.

    A folder with comparison.json is a comparison, one with run.yaml or metrics.jsonl is one run; any other is taken for a folder
    of runs. Errors: NothingToReport when none of these is there. Whatever else is missing is said on the page.
    """
    html = _html(folder)
    file = folder / NAME
    file.write_text(html, encoding="utf-8")
    return file


def _html(folder: Path) -> str:
    if is_comparison(folder):
        return comparison_page.html(folder)
    if is_run(folder):
        return run_page.html(read_run(folder))
    runs = told_apart([read_run(path) for path in run_folders(folder)]) if folder.is_dir() else []
    if not runs:
        raise NothingToReport(
            f"{folder}: holds no run (run.yaml, metrics.jsonl), no comparison (comparison.json) and no folder with a run; "
            "give what directalign train, evaluate or compare wrote"
        )
    return runs_page.html(folder, runs)
