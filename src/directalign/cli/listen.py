"""`directalign listen`: a reward that responds to control words, fine-tuned from wanted and unwanted pictures."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import one_line_errors
from .options import Debug, require_room


class Part(str, Enum):
    """What of a reward learns."""

    text = "text"
    lora = "lora"


def listen(
    reward: Annotated[str, typer.Option(metavar="REWARD", help="A CLIP folder, a hub id, world:reward, or a recipe (as a VLM needs).", show_default=False)],
    images: Annotated[str, typer.Option(metavar="DIR", help="Folder with wanted/ and unwanted/, or world:photo/rest.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the reward; a recipe names it as reward.path.", show_default=False)],
    positive: Annotated[list[str], typer.Option("--positive", help="Words that wanted pictures shall score higher under. Repeatable.")] = [],  # noqa: B006
    negative: Annotated[list[str], typer.Option("--negative", help="Words for unwanted pictures. Repeatable.")] = [],  # noqa: B006 (typer copies it)
    part: Annotated[Part | None, typer.Option(help="Of a CLIP: text, its text tower (default), or lora, adapters in both.", show_default=False)] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Updates at most; it stops when held-out captions no longer gain.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of each side in an update.")] = 16,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="If not given 1e-5 for text, 1e-4 for lora.", show_default=False)] = None,
    gap: Annotated[float | None, typer.Option(min=0, help="Length of pos − neg to aim at; if not given the reward's own.", show_default=False)] = None,
    light: Annotated[float, typer.Option(min=0, max=1, help="Share of more or less light that pos − neg shall not answer to.")] = 0.0,
    count: Annotated[int | None, typer.Option(min=1, help="Pictures of each side; if not given all, of the world 96.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the examples and the fit.")] = 0,
    debug: Debug = False,
) -> None:
    """Teach a reward to respond to control words, and measure before and after whether it does and where it pushes."""
    with one_line_errors(debug):
        from .. import config
        from ..control.asked import recipe_words
        from ..control.listen import Lessons
        from ..control.phrases import checked_phrases, words_alone
        from ..control.tuned_folder import listen as teach

        require_room(out)
        known = recipe_words(reward)
        wanted, unwanted = checked_phrases(positive, "--positive"), checked_phrases(negative, "--negative")
        words = config.ControlPhrases(positive=list(wanted) or known.positive, negative=list(unwanted) or known.negative)
        words_alone([*words.positive, *words.negative], "a reward is taught to hear words")
        lessons = Lessons(None if part is None else part.value, num_steps, batch_size, learning_rate, gap, light, seed)
        record = teach(reward, images, words, out, lessons, count)
        for name, (before, after) in _compared(record).items():
            typer.echo(f"{name:32} {before:>24} -> {after}")
        typer.echo(out)


def _compared(record: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """{measure: (before, after)} as text, angles with their intervals."""
    before, after = record["before"], record["after"]
    shown = {name.replace("_", " "): (_text(before[name]), _text(after[name])) for name in after if name != "bias"}
    moved = {f"{probe} moves pos − neg by": (_moved(before, probe), _moved(after, probe)) for probe in after["bias"]}
    return {**shown, **moved}


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value['value']:.1f}° ({value['low']:.1f} to {value['high']:.1f})"


def _moved(measured: dict[str, Any], probe: str) -> str:
    return f"{measured['bias'][probe]['relative']:+.4f}"
