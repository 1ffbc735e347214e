"""Reports: one self-contained HTML file from the files of a run or a comparison. Needs no torch."""

from pathlib import Path

from ..errors import DirectAlignError
from ..io.atomic import write_text
from . import comparison_page, run_page, runs_page
from .page import NAME
from .read import is_comparison, is_run, read_run, run_folders, with_distinct_names


class NothingToReport(DirectAlignError):
    """A folder without a run or a comparison; the message names what to give instead."""


def write_page(folder: Path) -> Path:
    """Write `folder/report.html` and return its path.

    A folder with comparison.json is a comparison, one with run.yaml or metrics.jsonl a run; any
    other is a folder of runs. Other missing files are listed on the page.

    Raises: NothingToReport if it is none of these.
    """
    if is_comparison(folder):
        html = comparison_page.html(folder)
    elif is_run(folder):
        html = run_page.html(read_run(folder))
    else:
        runs = [read_run(path) for path in run_folders(folder)] if folder.is_dir() else []
        if not runs:
            raise NothingToReport(
                f"{folder}: holds no run (run.yaml, metrics.jsonl), no comparison "
                "(comparison.json) and no folder with a run; give a folder of directalign train, "
                "evaluate or compare"
            )
        html = runs_page.html(folder, with_distinct_names(runs))
    file = folder / NAME
    write_text(file, html)
    return file
