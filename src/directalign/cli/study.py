"""`directalign study`: experiments of several runs, one command each; beside them the demo."""

from __future__ import annotations

from ..studies import STUDIES
from .common import Debug, one_line_errors
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
import typer


app = typer.Typer(no_args_is_help=True, help="Experiments of several runs on one page.")


@app.callback()
def _group() -> None:
    """Experiments of several runs on one page."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs and the page.")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """SRPO and plain Direct-Align on the embedded world, side by side: about two minutes on two cores."""
    with one_line_errors(debug):
        from ..studies.demo import demo as run_demo

        typer.echo(run_demo(out))


def _command(name: str) -> Callable[..., None]:
    """The command of one study."""

    def study(
        quick: Annotated[bool, typer.Option("--quick", help="A tiny size that shows the wiring, in minutes.")] = False,
        out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the study; called again it goes on.")] = Path("runs", f"study_{name}"),
        recipes: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the recipes that are compared.")] = Path("recipes"),
        debug: Debug = False,
    ) -> None:
        with one_line_errors(debug, "; call it again to go on"):
            from ..studies import run_study

            typer.echo(run_study(name, out, quick, recipes))

    return study


for _name, _title in STUDIES.items():
    app.command(_name, help=f"{_title}.")(_command(_name))
