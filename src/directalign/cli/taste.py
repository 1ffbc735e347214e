"""`directalign taste`: from votes on images to a model, and a blind vote on what it changed."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DirectAlignError
from .arena import names_of, require
from .common import (
    Debug,
    Overrides,
    argument,
    log_to_stderr,
    one_line_errors,
    option,
    shared_options,
    without_garbage_collection,
)
from .train import train as train_command

CONTINUES = "; the same command continues"
app = typer.Typer(no_args_is_help=True, help="From your votes to a model: start, train, compare.")
Folder = Annotated[Path, argument("Folder of directalign taste start.", "FOLDER")]


def arena_options(
    host: Annotated[
        str | None, option("Address to listen on, 0.0.0.0 for the network; default this machine.")
    ] = None,
    port: Annotated[int, option("Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    annotators: Annotated[
        str | None, option("Comma-separated names: a personal link for each.", "NAMES")
    ] = None,
) -> dict[str, Any]:
    """Where the arena listens, and who takes part."""
    return {"host": host, "port": port, "annotators": names_of(annotators)}


@app.command()
@shared_options(served=arena_options)
def start(
    source: Annotated[
        str, argument("A recipe or model to begin with; or FOLDER, for its next round.", "SOURCE")
    ],
    served: dict[str, Any],
    prompts: Annotated[
        str | None, option("A prompt list, or world; a quarter is held out to compare on.", "FILE")
    ] = None,
    out: Annotated[Path | None, option("New folder; default: taste.", "FOLDER")] = None,
    pairs: Annotated[int | None, option("Pairs to vote on in a round; default 64.", min=1)] = None,
    compared: Annotated[int | None, option("Images before and after; default 48.", min=1)] = None,
    phrase: Annotated[
        list[str], option("Put before prompts, so that images of a pair differ more. Repeatable.")
    ] = [],
    seed: Annotated[
        int | None, option("Seed of images and training; default 0.", min=0, max=1_000_000)
    ] = None,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Make two images of each prompt and open the vote on them; Ctrl-C ends it."""
    given = {"--prompts": prompts, "--out": out, "--pairs": pairs, "--compared": compared}
    given |= {"--phrase": phrase, "--seed": seed, "--set": overrides}
    with one_line_errors(debug, CONTINUES), log_to_stderr():
        require("the arena", "fastapi", "uvicorn", "krippendorff")
        with without_garbage_collection():
            from .. import taste

        folder = Path(source)
        if (folder / taste.STATE).is_file():
            if name := next((name for name, value in given.items() if value not in (None, [])), ""):
                raise DirectAlignError(f"{name}: {folder} was begun with its own; leave it out")
        elif prompts is None:
            raise DirectAlignError("no prompts: give --prompts FILE, a prompt a line, or world")
        else:
            folder, sizes = out or Path("taste"), (pairs or 64, compared or 48)
            taste.start(source, prompts, folder, *sizes, phrase, seed or 0, overrides)
        this = taste.to_vote_on(folder)
        for warning in taste.check_candidates(this):
            typer.echo(f"warning: {warning}", err=True)
        images, database = taste.make_candidates(this), this / "votes.sqlite"
        _vote(database, images, f"Which image is better? Round {this.number}", served)
        typer.echo(f"{taste.num_decided(database)} pairs are decided; {database} keeps all votes")
        typer.echo(f"next: directalign taste train {shlex.quote(str(folder))}")


@app.command()
def train(folder: Folder, debug: Debug = False) -> None:
    """Train a LoRA on what the votes preferred (Flow-DPO)."""
    with one_line_errors(debug):
        with without_garbage_collection():
            from .. import taste

        taste.load(folder)
        this = taste.current(folder)
        recipe, overrides, out = folder / taste.RECIPE, taste.prepare_training(this), this / "run"
        typer.echo(f"{taste.num_pairs(this)} pairs are decided by the votes of all rounds")
        words = ["directalign", "train", str(recipe), *(f"--set={each}" for each in overrides)]
        typer.echo(shlex.join([*words, "--out", str(out)]))
    train_command(recipe, [], overrides, out, (out / "run.yaml").is_file(), debug)
    typer.echo(f"next: directalign taste compare {shlex.quote(str(folder))}")


@app.command()
@shared_options(served=arena_options)
def compare(folder: Folder, served: dict[str, Any], debug: Debug = False) -> None:
    """Open a blind vote on images of the base model and the tuned one; Ctrl-C ends it."""
    with one_line_errors(debug, CONTINUES), log_to_stderr():
        require("the arena", "fastapi", "uvicorn", "krippendorff")
        with without_garbage_collection():
            from .. import taste
            from ..arena.results import percent, span, write_results

        taste.load(folder)
        this = taste.last_trained(folder)
        images, database = taste.make_comparison(this), this / "after.sqlite"
        _vote(database, images, f"Before and after, round {this.number}", served)
        found = taste.outcome(database)
        if found is None:
            typer.echo("no votes yet; the same command continues")
            return
        rate, votes = found.panel, found.wins + found.losses + found.ties
        typer.echo(
            f"the tuned model is preferred in {percent(rate.value, rate.n)} of {votes} votes "
            f"(95 % interval {span(rate)}; ties count half)"
        )
        typer.echo(write_results(database, this / "results")[0])
        again = f"directalign taste start {shlex.quote(str(folder))}"
        run = shlex.quote(str(this / "run"))
        typer.echo(f"next: directalign export {run} --format diffusers, or {again}")


def _vote(database: Path, images: Path, title: str, served: dict[str, Any]) -> None:
    """Serve the arena until Ctrl-C."""
    from ..arena.server import serve
    from ..arena.session import open_arena

    arena = open_arena(database, [images], "vote", None, title)
    where = served["host"], served["port"], served["annotators"]
    with suppress(KeyboardInterrupt):
        serve(arena, *where, False, typer.echo)
