"""Options that several commands share, each described once."""

from __future__ import annotations

import os
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


def require_room(out: Path) -> None:
    """Refuse an --out that cannot be written, before the work whose result it is to hold.

    Raises: DirectAlignError where the nearest folder that exists is none, or not the user's to write to.
    """
    from ..types import DirectAlignError

    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise DirectAlignError(f"--out {out}: {nearest} is not a folder that you may write to; name another one")


def require_new_file(out: Path) -> None:
    """Refuse an --out file that cannot be written or is there already. Raises: DirectAlignError."""
    from ..types import DirectAlignError

    if out.exists():
        raise DirectAlignError(f"--out: {out} exists already; name another file")
    require_room(out)
