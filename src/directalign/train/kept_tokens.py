"""Learned control tokens stay with the run: a copy of each file that the recipe names, so that it can be repeated, and continues with the same."""

from __future__ import annotations

from pathlib import Path

from .. import config
from ..rewards.soft_prompts import is_tokens_file
from ..types import DirectAlignError

FOLDER = "control_tokens"


def keep_tokens(run: config.Run, out: Path) -> None:
    """Copy the files of learned tokens into `out/control_tokens`, numbered in the order of the recipe.

    Raises: DirectAlignError where a file is not what it was when the run began.
    """
    for number, file in enumerate(token_files(run)):
        kept, content = out / FOLDER / f"{number}-{file.name}", file.expanduser().read_bytes()
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(content)
        elif kept.read_bytes() != content:
            raise DirectAlignError(f"{file}: not the tokens that the run in {out} began with; put {kept} back in its place, or start a new run")


def token_files(run: config.Run) -> list[Path]:
    """Every file of learned tokens that the recipe names, once."""
    members = [member.words for member in run.reward.members] if isinstance(run.reward, config.Mix) else []
    phrases = [phrase for words in (run.method.words, *members) if words is not None for phrase in (*words.positive, *words.negative)]
    return [Path(phrase) for phrase in dict.fromkeys(phrases) if is_tokens_file(phrase)]
