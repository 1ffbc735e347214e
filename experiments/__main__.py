"""`python -m experiments NAME [--quick] [--out DIR]`: run or resume a study; prints its page."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from directalign.cli.common import Debug, one_line_errors

from .runner import STUDIES, run_study

Name = Enum("Name", {name: name for name in STUDIES})
LIST = "\n\n".join(f"{name}: {title}." for name, title in STUDIES.items())


def study(
    name: Annotated[Name, typer.Argument(help="Name of the study.", show_default=False)],
    quick: Annotated[bool, typer.Option("--quick", help="A tiny size, to test the code.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/study_NAME.")] = None,
    debug: Debug = False,
) -> None:
    with one_line_errors(debug, "; call it again to resume"):
        folder = Path("runs", f"study_{name.value}") if out is None else out
        typer.echo(run_study(name.value, folder, quick))


app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
app.command(help=f"Run a study, or resume it.\n\n{LIST}")(study)

if __name__ == "__main__":
    app(prog_name="python -m experiments")
