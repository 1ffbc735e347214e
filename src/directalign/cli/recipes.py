"""`directalign recipes`: list, show and copy the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DirectAlignError
from .common import Debug, argument, one_line_errors, option, require_new_file

app = typer.Typer(help="The recipes that come with the package: list, show, copy.")
Name = Annotated[str, argument("Name of a recipe, as `directalign recipes` lists it.", "NAME")]


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@app.command("list")
def list_recipes(debug: Debug = False) -> None:
    """List the recipes: name and title."""
    with one_line_errors(debug):
        from ..config.load import RECIPES, recipe_names
        from ..io.yaml_text import parse_yaml

        names = recipe_names()
        width = max(map(len, names))
        for name in names:
            text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
            typer.echo(f"{name:{width}}  {parse_yaml(text, name, 'broken')['name']}")


@app.command()
def show(name: Name, debug: Debug = False) -> None:
    """Print a recipe with its comments."""
    with one_line_errors(debug):
        typer.echo(_text(name), nl=False)


@app.command()
def copy(
    name: Name,
    out: Annotated[Path | None, option("The new file; default: NAME.yaml here.", "FILE")] = None,
    debug: Debug = False,
) -> None:
    """Copy a recipe, to be changed: `directalign train FILE`."""
    with one_line_errors(debug):
        text, out = _text(name), out or Path(f"{name}.yaml")
        require_new_file(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(text.encode())
        typer.echo(out)


def _text(name: str) -> str:
    from ..config.load import RECIPES, recipe_names, recipe_path

    if name not in recipe_names():
        recipe_path(name)  # names that are close, unless it is a file
        raise DirectAlignError(f"{name}: is a file; give a name that `directalign recipes` lists")
    return (RECIPES / f"{name}.yaml").read_bytes().decode()
