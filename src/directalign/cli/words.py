"""`directalign words`: control words measured on a reward, as a table, a page and pieces of a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .errors import one_line_errors
from .options import Debug, require_room

SHOWN = 12
"""Phrases of the table at each end; the page has them all."""


def words(
    reward: Annotated[str, typer.Option("--reward", metavar="R", help="A CLIP or SigLIP folder or hub id, world:reward, or a recipe (.yaml).")],
    images: Annotated[str, typer.Option(metavar="DIR", help="Folder with wanted/ and unwanted/, or world, world:photo/cg.")] = "world",
    positive: Annotated[list[str], typer.Option("--positive", metavar="PHRASE", help="Candidate for the wanted side. Repeatable.")] = [],  # noqa: B006
    negative: Annotated[list[str], typer.Option("--negative", metavar="PHRASE", help="Candidate for the unwanted side. Repeatable.")] = [],  # noqa: B006
    candidates: Annotated[Path | None, typer.Option(metavar="FILE", help="Candidates for either side, one a line.")] = None,
    count: Annotated[int | None, typer.Option(min=2, help="Images a side; all of a folder, 96 of the world if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the images that are drawn.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for words.html, words.json and the pieces of recipes.")] = Path("runs/words"),
    debug: Debug = False,
) -> None:
    """Measure candidate control words on a reward, and suggest words, ramps and a tolerance."""
    with one_line_errors(debug):
        from rich.console import Console

        require_room(out / "words.html")
        page, found = _run(reward, images, positive, negative, candidates, count, seed, out)
        console = Console()
        console.print(_words(found), highlight=False)
        console.print(_suggested(found), highlight=False)
        typer.echo(page)


def _run(reward: str, images: str, positive: list[str], negative: list[str], candidates: Path | None, count: int | None, seed: int, out: Path) -> Any:
    import torch

    from ..control.answers import look
    from ..control.asked import reward_settings
    from ..control.examples import load_examples
    from ..control.findings import find
    from ..control.phrases import sides
    from ..control.words_page import Asked, write_words
    from ..rewards import load_reward

    settings = reward_settings(reward)
    wanted, unwanted = sides(reward, positive, negative, candidates)
    examples = load_examples(images, "--images", count=count, seed=seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_reward(settings, device, "--reward")
    found = find(loaded, look(loaded, examples, device), wanted, unwanted)
    named = [f"--positive {shlex.quote(each)}" for each in positive] + [f"--negative {shlex.quote(each)}" for each in negative]
    asked = ["directalign words --reward", shlex.quote(reward), "--images", shlex.quote(images), *named]
    asked += ["--candidates", shlex.quote(str(candidates))] if candidates else []
    asked += ["--count", str(count)] if count else []
    return write_words(found, examples, Asked(reward, images, " ".join([*asked, "--seed", str(seed)])), out), found


def _words(found: Any) -> Table:
    """Both ends of the ranking."""
    table = Table("phrase", "lift, 95 %", "size", "content", "cosine", "but", title="Control words, most wanted first", title_justify="left")
    every = list(found.words)
    listed = every if len(every) <= 2 * SHOWN else [*every[:SHOWN], None, *every[-SHOWN:]]
    for word in listed:
        if word is None:
            table.add_row("…", "", "", "", "", f"{len(every) - 2 * SHOWN} more on the page")
            continue
        lift = f"{word.lift.value:+.3f} ±{word.lift.high - word.lift.value:.3f}"
        content, cosine = ("" if value is None else f"{value:.{digits}f}" for value, digits in ((word.content, 2), (word.cosine, 3)))
        table.add_row(escape(word.phrase), lift, f"{word.lift.size:+.2f}", content, cosine, "; ".join(each.split(":")[0] for each in found.of_word(word)))
    return table


def _suggested(found: Any) -> Table:
    """What is suggested, and what warns."""
    table = Table(show_header=False, title="Suggested", title_justify="left")
    suggestion = found.suggestion
    if suggestion is not None:
        table.add_row("positive", escape(", ".join(suggestion.pair.positive)))
        table.add_row("negative", escape(", ".join(suggestion.pair.negative)))
        table.add_row("gap", f"{suggestion.pair.gap.value:+.3f} ({suggestion.pair.gap.low:+.3f} to {suggestion.pair.gap.high:+.3f})")
        table.add_row("k_pos − k_neg", "not known for this reward" if suggestion.mu is None else f"0 at low noise to {2 * suggestion.mu:.2f} at high noise")
        table.add_row("tolerance", "not known" if suggestion.tolerance is None else f"{suggestion.tolerance:g}")
    for warning in found.warnings:
        table.add_row("warning", escape(warning))
    return table
