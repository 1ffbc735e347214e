"""`directalign schema`: the JSON schema of a recipe, for editors that complete and check YAML as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

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
        text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
        if out is None:
            typer.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")


def recipe_schema() -> dict[str, Any]:
    """The schema of `config.Run`, where a preset may stand in for the method section."""
    from ..config import RunConfig

    generated = RunConfig.model_json_schema()
    generated["required"].remove("method")
    generated["anyOf"] = [{"required": ["method"]}, {"required": ["preset"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}
