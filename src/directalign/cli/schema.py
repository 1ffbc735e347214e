"""`directalign schema`: the JSON schema of a recipe, for editors that complete and check YAML as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, one_line_errors


def schema(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of printing it.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of a recipe, for editors."""
    with one_line_errors(debug):
        from ..config.load import recipe_schema

        text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
        if out is None:
            typer.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")
