"""`directalign arena` and `ui`: blind human comparison, and the runs of a folder, in a browser."""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ..errors import DirectAlignError
from .common import Debug, argument, flag, one_line_errors, option, require_room


class _ServesByDefault(TyperGroup):
    """`arena SOURCE` means `arena serve SOURCE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ServesByDefault,
    no_args_is_help=True,
    help="Blind human comparison in a browser: [bold]directalign arena SOURCE... --out DB[/bold]",
)


@app.command()
def serve(
    sources: Annotated[
        list[Path],
        argument("Folder of directalign compare, or folders of directalign sample.", "SOURCE..."),
    ],
    out: Annotated[
        Path, option("Database of the answers; created, or continued.", "DB", show_default=False)
    ],
    mode: Annotated[
        Literal["rate", "vote"] | None,
        option("rate: four axes per image. vote: the better of two (default)."),
    ] = None,
    items: Annotated[int | None, option("Number of random prompts; default all.", min=1)] = None,
    title: Annotated[
        str, option("Title of the results; default: the name of the source.", show_default=False)
    ] = "",
    host: Annotated[
        str | None, option("Address to listen on, 0.0.0.0 for the network; default this machine.")
    ] = None,
    port: Annotated[int, option("Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    annotators: Annotated[
        str | None,
        option(
            "Comma-separated names: a personal link for each; nobody else may take part.", "NAMES"
        ),
    ] = None,
    everybody: Annotated[
        bool, flag("--open", "Let everybody join again, after --annotators.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Ask people which images are better (the word serve is optional); prints the links."""
    with one_line_errors(debug):
        names = names_of(annotators)
        require_room(out)
        require("the arena", "fastapi", "uvicorn", "krippendorff")
        from ..arena.server import serve as serve_arena
        from ..arena.session import open_arena

        arena = open_arena(out, sources, mode, items, title)
    with one_line_errors(debug, f"; all answers are in {out}; the same command continues"):
        serve_arena(arena, host, port, names, everybody, typer.echo)


@app.command()
def results(
    database: Annotated[Path, argument("Database of an arena.", "DB")],
    out: Annotated[
        Path, option("Folder for results.html and the tables.", "FOLDER", show_default=False)
    ],
    debug: Debug = False,
) -> None:
    """Write the result page and its tables from a database."""
    with one_line_errors(debug):
        require_room(out)
        require("the arena", "krippendorff")
        from ..arena.results import write_results

        for file in write_results(database, out):
            typer.echo(file)


@app.command()
def export(
    database: Annotated[Path, argument("Database of an arena.", "DB")],
    out: Annotated[Path, option("New folder.", "FOLDER", show_default=False)],
    pairs: Annotated[
        bool, flag("--pairs", "pairs.jsonl (prompt, chosen, rejected) with the images.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write what people preferred as pairs of images to train on (method.name: dpo)."""
    with one_line_errors(debug):
        if not pairs:
            raise DirectAlignError("arena export: what to write is not said: add --pairs")
        require_room(out)
        require("the arena", "krippendorff")
        from ..arena.pairs import write_pairs

        made = write_pairs(database, out)
        undecided = f", {made.undecided} undecided ones left out" if made.undecided else ""
        typer.echo(f"{made.file}: {made.pairs} pairs from {made.votes} votes{undecided}")
        typer.echo(f"next: directalign train RECIPE --set data.pairs={out}  (method.name: dpo)")


def names_of(annotators: str | None) -> list[str]:
    """Names of --annotators. An empty list lets everybody join, so an empty value is refused."""
    names = [name.strip() for name in (annotators or "").split(",") if name.strip()]
    if annotators is not None and not names:
        raise DirectAlignError(
            f"--annotators {annotators!r}: holds no name; give comma-separated names, "
            "or omit it to let everybody join"
        )
    return names


def require(what: str, *modules: str) -> None:
    """Raise DirectAlignError, saying how to install them, unless all modules are there."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DirectAlignError(
                f"{what} needs {error.name}, which is not installed: "
                "pip install 'directalign[arena]'"
            ) from None


def ui(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the runs; created if missing.", metavar="DIR")
    ] = Path("runs"),
    host: Annotated[
        str | None, option("Address to listen on, 0.0.0.0 for the network; default this machine.")
    ] = None,
    port: Annotated[int, option("Port; 0 takes a free one.", min=0, max=65535)] = 8001,
    debug: Debug = False,
) -> None:
    """All runs of DIR in a browser: live curves and samples; start, stop and continue a recipe."""
    with one_line_errors(debug, "; runs that were started go on"):
        require("the page of runs", "fastapi", "uvicorn")
        from ..report.read import is_run

        if is_run(folder):
            raise DirectAlignError(f"{folder}: is a run; name the folder it is in, {folder.parent}")
        from ..ui.server import serve

        serve(folder, host, port, typer.echo)
