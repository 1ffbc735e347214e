"""`directalign train`, `demo`, `recipes`, `schema` and `world`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import DirectAlignError
from .common import (
    Debug,
    Overrides,
    Recipe,
    Settings,
    alike_on_all_ranks,
    argument,
    default_out,
    flag,
    is_first_rank,
    one_line_errors,
    option,
    require_new_file,
    seed_option,
    without_garbage_collection,
)

if TYPE_CHECKING:
    from ..config import RunConfig


def train(
    recipe: Recipe,
    settings: Settings = [],
    overrides: Overrides = [],
    out: Annotated[Path | None, option("Output folder; default: runs/RECIPE.", "DIR")] = None,
    resume: Annotated[
        bool,
        flag(
            "--resume",
            "Continue from the newest checkpoint as DIR/run.yaml says; --set changes its keys.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Align a model as in RECIPE; write weights, metrics and a page into one folder."""
    out, overrides = out or default_out(recipe), [*overrides, *settings]
    again = ["directalign", "train", str(recipe), *(f"--set={each}" for each in overrides)]
    again += ["--out", str(out), "--resume"]
    page = _page_last(out) if is_first_rank() else nullcontext()
    with one_line_errors(debug, f"; continue with: {shlex.join(again)}"), page:
        with alike_on_all_ranks(), without_garbage_collection():
            run, overrides, resume, flops = _prepared(recipe, overrides, out, resume)
            from ..training import run as run_training
            from ..training.run import InMemory

        finished = run_training(run, out, resume, overrides, InMemory(update_flops=flops))
        if is_first_rank():
            typer.echo(finished)
            typer.echo(_next_commands(out, run.model.tune))


def _prepared(
    recipe: Path, overrides: list[str], out: Path, resume: bool
) -> tuple[RunConfig, list[str], bool, float | None]:
    """The run after all checks, its overrides, whether it continues another (then both are those
    of the run in `out`), and the FLOPs of an update."""
    from ..config.load import load_run, resumed_run

    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    resume = resume or (restarted and (out / "run.yaml").is_file())
    run = None if resume else load_run(recipe, overrides)
    if is_first_rank():  # the next imports take seconds
        name = recipe if run is None else run.name
        typer.echo(f"{name}: checking, then training; page: {_page(out).as_uri()}")
    if "RANK" not in os.environ:  # before the slow estimate; torchrun's restarts may resume
        from ..training import run_folder

        run_folder.check(out, resume)
    if run is None:
        resumed = resumed_run(recipe, out, overrides)
        run, overrides = resumed.run, resumed.overrides
        if resumed.unused and is_first_rank():
            typer.echo(resumed.unused_line(recipe, out), err=True)
    from ..preflight import plan  # slow imports: diffusers

    found = plan(run, out)
    for warning in found.warnings if is_first_rank() else ():
        typer.echo(f"warning: {warning}", err=True)
    return run, overrides, resume, found.update_flops


def _next_commands(out: Path, tune: str) -> str:
    """What to do with a finished run, as typed."""
    folder = shlex.quote(str(out))
    form = "folder  (or checkpoint)"
    if tune == "lora":
        form = "diffusers  (or comfyui, kohya, checkpoint)"
    return (
        f"next: directalign sample {folder} --prompt '...' --out images\n"
        f"      directalign evaluate {folder}\n"
        f"      directalign export {folder} --format {form}\n"
        f"      directalign arena {folder}/evaluation --out votes.sqlite  (after evaluate)"
    )


@contextmanager
def _page_last(out: Path) -> Iterator[None]:
    """Print the address of the run's page at the end, also after an error, if it was written."""
    page = _page(out)
    before = page.stat().st_mtime_ns if page.exists() else None
    try:
        yield
    finally:
        if page.exists() and page.stat().st_mtime_ns != before:
            typer.echo(f"page: {page.as_uri()}")


World = Annotated[Literal["world", "world2"], option("world: drawn shapes; world2: drawn things.")]


def _page(out: Path) -> Path:
    from ..report.page import NAME

    return out.absolute() / NAME


def demo(
    out: Annotated[
        Path | None,
        option("Folder for the runs and the page; default: runs/demo or runs/demo_quick.", "DIR"),
    ] = None,
    quick: Annotated[
        bool, flag("--quick", "Two updates a run, to test the installation: half a minute.")
    ] = False,
    full: Annotated[
        bool, flag("--full", "The recipes in their own size: three to four minutes.")
    ] = False,
    world: World = "world2",
    debug: Debug = False,
) -> None:
    """SRPO, the released form and Direct-Align on a toy FLUX: a minute and a half on two cores."""
    with one_line_errors(debug, "; the same command continues"):
        if quick and full:
            raise DirectAlignError("--quick and --full: give one of them")
        size = "quick" if quick else "full" if full else "short"
        out = out or Path("runs/demo" if size == "short" else f"runs/demo_{size}")
        typer.echo(f"three runs of the toy FLUX in {out}")
        with without_garbage_collection():
            from ..demo import QUICK, SHORT  # slow imports: diffusers
            from ..demo import demo as run_demo

        overrides = {"quick": QUICK, "short": SHORT, "full": ()}[size]
        typer.echo(run_demo(out, overrides, world))


def schema(
    out: Annotated[Path | None, option("Output file; default: print it.", "FILE")] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of a recipe, for completion and checks in editors."""
    with one_line_errors(debug):
        from ..config.run import recipe_schema

        text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
        if out is None:
            typer.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")


world = typer.Typer(
    no_args_is_help=True, help="The toy worlds: tiny models that come with the package."
)


@world.command()
def export(
    folder: Annotated[Path, argument("Folder for the base models and rewards.", "DIR")],
    name: World = "world",
    debug: Debug = False,
) -> None:
    """Write the embedded models as complete diffusers and transformers folders."""
    with one_line_errors(debug):
        from ..toyworld.assets import export as export_models
        from ..toyworld.worlds import WORLDS

        for written in export_models(folder, WORLDS[name]):
            typer.echo(written)


@world.command()
def images(
    folder: Annotated[Path, argument("New folder for the images.", "DIR")],
    count: Annotated[int, option("Number of images.", min=1)] = 256,
    style: Annotated[
        str, option("photo, cg, painting or anime; world2: photo, cg, flat or soft.")
    ] = "photo",
    name: World = "world",
    seed: Annotated[int, seed_option("Random seed.")] = 0,
    debug: Debug = False,
) -> None:
    """Draw images with captions, as a set of real images for offline training."""
    with one_line_errors(debug):
        from ..toyworld.assets import write_pictures
        from ..toyworld.worlds import WORLDS

        typer.echo(write_pictures(folder, count, style, seed, WORLDS[name]))


recipes = typer.Typer(help="The recipes that come with the package: list, show, copy.")
Name = Annotated[str, argument("Name of a recipe, as `directalign recipes` lists it.", "NAME")]


@recipes.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes.command("list")
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


@recipes.command()
def show(name: Name, debug: Debug = False) -> None:
    """Print a recipe with its comments."""
    with one_line_errors(debug):
        typer.echo(_text(name), nl=False)


@recipes.command()
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
