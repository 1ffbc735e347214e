"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A run in YAML, see recipes/.", show_default=False)]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe, e.g. train.num_steps=100. Repeatable.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that a run left.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show where in the code it arose.")]


def default_out(recipe: Path) -> Path:
    """Where a run goes if nothing is said: runs/ and the recipe's name."""
    return Path("runs") / recipe.stem
