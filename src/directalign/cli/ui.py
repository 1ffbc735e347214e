"""`directalign ui`: the runs of a folder in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from .arena import require
from .common import Debug, one_line_errors, option


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
        from ..errors import DirectAlignError
        from ..report.read import is_run

        if is_run(folder):
            raise DirectAlignError(f"{folder}: is a run; name the folder it is in, {folder.parent}")
        from ..ui.server import serve

        serve(folder, host, port, typer.echo)
