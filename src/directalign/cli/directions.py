"""`directalign directions`: what an exploit of a reward moves along, as a file that `reward.project` takes; the last line names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import one_line_errors
from .options import Debug, require_new_file


def directions(
    reward: Annotated[str, typer.Option(metavar="REWARD", help="A recipe, a CLIP or SigLIP folder, a hub id, or world:reward.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")] = Path("directions.safetensors"),
    before: Annotated[Path | None, typer.Option(metavar="DIR", help="Images of the base model, or a run; if not given the run of --after.")] = None,
    after: Annotated[Path | None, typer.Option(metavar="DIR", help="Images of the trained model under the same names, or a run.")] = None,
    probe: Annotated[list[str], typer.Option(help="In place of --after: change the images, e.g. 'red tint' or blur. Repeatable.")] = [],  # noqa: B006 (typer copies it)
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="In place of images: what all these prompts (a list, or world) pull towards.")] = None,
    keep_words: Annotated[list[str], typer.Option(metavar="PHRASE", help="A wanted phrase, which stays visible. Repeatable; goes with --against.")] = [],  # noqa: B006
    against: Annotated[list[str], typer.Option(metavar="PHRASE", help="An unwanted phrase. Repeatable.")] = [],  # noqa: B006
    keep_examples: Annotated[str | None, typer.Option(metavar="DIR", help="wanted/ and unwanted/ images, or world:photo/rest: their difference stays.")] = None,
    components: Annotated[int, typer.Option(min=1, help="Directions: the common shift, then the strongest of the rest.")] = 1,
    num_pairs: Annotated[int, typer.Option(min=2, help="Images that are sampled of a run.")] = 64,
    debug: Debug = False,
) -> None:
    """Find the directions that a reward's exploit shares over prompts, so that the reward can be made blind to them."""
    with one_line_errors(debug):
        from ..config import ControlPhrases
        from ..control.phrases import checked_phrases
        from ..evaluate.directions import Request, make_directions

        require_new_file(out)
        keep = ControlPhrases(positive=list(checked_phrases(keep_words, "--keep-words")), negative=list(checked_phrases(against, "--against")))
        found = make_directions(Request(reward, before, after, tuple(probe), prompts, keep, keep_examples, components, num_pairs), out)
        shares = {"shared by all images": found.shared, "along what is kept": found.wanted, "along the directions": found.held}
        for what, share in shares.items():
            typer.echo(f"{share:7.1%} of the shift is {what}")
        if found.explained is not None and found.gain is not None:
            typer.echo(f"{found.explained:7.1%} of the gain of {found.gain:+.4f} in the mean score lies along the directions")
        typer.echo(out)
