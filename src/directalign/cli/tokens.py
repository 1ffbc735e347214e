"""`directalign tokens`: control tokens fitted to a reward, as files that stand where control words do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import one_line_errors
from .options import Debug, require_new_file

NEGATIVE = ".negative.safetensors"


def tokens(
    reward: Annotated[str, typer.Option(metavar="R", help="A CLIP or SigLIP folder or hub id, world:reward, or a recipe (.yaml), whose words are the start.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="NAME.safetensors, the wanted side; the unwanted one becomes NAME.negative.safetensors.")],
    images: Annotated[str | None, typer.Option(metavar="DIR", help="wanted/ and unwanted/, or world:photo/cg; without, tokens are a mean of words.")] = None,
    words: Annotated[list[str], typer.Option("--words", metavar="PHRASE", help="ControlPhrases of the wanted side to start from. Repeatable.")] = [],  # noqa: B006
    against: Annotated[list[str], typer.Option("--against", metavar="PHRASE", help="ControlPhrases of the unwanted side. Repeatable.")] = [],  # noqa: B006
    length: Annotated[int | None, typer.Option(min=1, help="Tokens a side; as the longest phrase if not given, 2 without words.")] = None,
    content: Annotated[float, typer.Option(min=0, help="How much pos − neg shall say of what the caption names, beside the style's 1.")] = 0.15,
    bias: Annotated[float, typer.Option(min=0, help="How much it shall ignore tints, light, blur and the like.")] = 0.15,
    count: Annotated[int | None, typer.Option(min=1, help="Images a side; all of a folder, 96 of the world if not given.")] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Steps of the fit, at most.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the fit and of drawn images.")] = 0,
    debug: Debug = False,
) -> None:
    """Fit control tokens from wanted and unwanted images, or as a mean of words."""
    with one_line_errors(debug):
        files = _files(out)
        from ..config import ControlPhrases
        from ..control.asked import recipe_words, reward_settings
        from ..control.phrases import checked_phrases, words_alone
        from ..control.tokens import Fitting
        from ..types import DirectAlignError

        settings = reward_settings(reward)
        named = ControlPhrases(positive=list(checked_phrases(words, "--words")), negative=list(checked_phrases(against, "--against")))
        start = named if words or against else recipe_words(reward)
        words_alone([*start.positive, *start.negative], "tokens start from words")
        if images is None and not start.positive:
            raise DirectAlignError("nothing to fit: give --images with wanted/ and unwanted/, or --words")
        fitting = Fitting(length, content, bias, num_steps=num_steps, seed=seed)
        if images is None:
            _from_words(settings, start, fitting, files)
        else:
            _from_images(settings, start, images, count, fitting, files)


def _files(out: Path) -> tuple[Path, Path]:
    """The files of both sides, neither of which is there."""
    from ..rewards.soft_prompts import SUFFIX
    from ..types import DirectAlignError

    if out.suffix != SUFFIX:
        raise DirectAlignError(f"--out {out}: learned tokens are known by their ending; name it {out.name}{SUFFIX}")
    files = out, out.with_suffix(NEGATIVE)
    for file in files:
        require_new_file(file)
    return files


def _from_words(settings: Any, start: Any, fitting: Any, files: tuple[Path, Path]) -> None:
    from ..control.tokens import mean_of_words
    from ..rewards import load_reward
    from ..rewards.soft_prompts import write_tokens

    loaded = load_reward(settings, key="--reward")
    for file, phrases in zip(files, (start.positive, start.negative), strict=True):
        if phrases:
            write_tokens(file, mean_of_words(loaded, phrases, fitting.length))
            typer.echo(file)


def _from_images(settings: Any, start: Any, images: str, count: int | None, fitting: Any, files: tuple[Path, Path]) -> None:
    import torch
    from rich.console import Console

    from ..control.examples import load_examples
    from ..control.tokens import fit_tokens
    from ..rewards import load_reward
    from ..rewards.soft_prompts import write_tokens

    examples = load_examples(images, "--images", count=count, seed=fitting.seed)
    loaded = load_reward(settings, "cuda" if torch.cuda.is_available() else "cpu", "--reward")
    fitted = fit_tokens(loaded, examples, start, fitting)
    Console().print(_table(fitted), highlight=False)
    for file, made in zip(files, (fitted.positive, fitted.negative), strict=True):
        write_tokens(file, made)
        typer.echo(file)


def _table(fitted: Any) -> Any:
    """The words and the tokens side by side, on held-out captions."""
    from rich.table import Table

    table = Table("pos − neg", "style", "separated", "content", "bias", title=f"On {fitted.held_out} held-out images a side", title_justify="left")
    for name, found in (("words", fitted.words), (f"tokens, step {fitted.best_step}", fitted.learned)):
        if found is not None:
            table.add_row(name, f"{found.style:+.4f}", f"{found.separated:.0%}", f"{found.content:+.4f}", f"{found.bias:.2f}")
    return table
