"""`directalign arena`: blind human comparison in a browser; `directalign arena results` writes what it found, with no server."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .errors import one_line_errors
from .options import Debug, require_room


class _ServesByDefault(TyperGroup):
    """`arena SOURCE` means `arena serve SOURCE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


class Mode(str, Enum):
    """What annotators do."""

    rate = "rate"
    vote = "vote"


app = typer.Typer(cls=_ServesByDefault, no_args_is_help=True, help="Blind human comparison in a browser: [bold]directalign arena SOURCE... --out DB[/bold]")


@app.command()
def serve(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="A comparison's folder, or folders of directalign sample.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DB", help="The database; called again, the arena goes on.", show_default=False)],
    mode: Annotated[Mode | None, typer.Option(help="rate: four axes for every image. vote: the better of two. If not given, vote or the database's.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="So many prompts, drawn by lot; all if not given.")] = None,
    host: Annotated[str | None, typer.Option(help="Listen there, 0.0.0.0 for the network, with an invitation; else on this machine alone.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    annotators: Annotated[str | None, typer.Option(metavar="NAMES", help="Names with commas between: a link for each, and for nobody else.")] = None,
    debug: Debug = False,
) -> None:
    """Ask people which images are better (the word serve may be left out); prints the links."""
    with one_line_errors(debug), _arena_errors():
        names = _names(annotators)
        require_room(out)
        _require_server()
        from ..arena.asking import open_arena
        from ..arena.serving import serve as serve_arena

        arena = open_arena(out, sources, None if mode is None else mode.value, items)
    with one_line_errors(debug, f"; every answer is in {out}, and the same command goes on"), _arena_errors():
        serve_arena(arena, host, port, names, typer.echo)


@app.command()
def results(
    database: Annotated[Path, typer.Argument(metavar="DB", help="The database that an arena left.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for results.html and the tables.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Write the result page and its tables from a database."""
    with one_line_errors(debug), _arena_errors():
        require_room(out)
        _require("krippendorff")
        from ..arena.offline import write_results

        for file in write_results(database, out):
            typer.echo(file)


def _names(annotators: str | None) -> list[str]:
    """The names given; an empty list lets everybody join, which must not come about by a variable that is not set."""
    from ..arena.records import ArenaError

    names = [name.strip() for name in (annotators or "").split(",") if name.strip()]
    if annotators is not None and not names:
        raise ArenaError(f"--annotators {annotators!r}: names nobody; give names with commas between, or leave it out to let everybody join")
    return names


@contextmanager
def _arena_errors() -> Iterator[None]:
    """The arena knows none of the package, nor its errors."""
    from ..arena.records import ArenaError

    try:
        yield
    except ArenaError as error:
        from ..types import DirectAlignError

        raise DirectAlignError(str(error)) from None


def _require_server() -> None:
    _require("fastapi", "uvicorn", "krippendorff")


def _require(*modules: str) -> None:
    from ..arena.records import ArenaError

    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ArenaError(f"the arena needs {error.name}, which is not installed: pip install 'directalign[arena]'") from None
