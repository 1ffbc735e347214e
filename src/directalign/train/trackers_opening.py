"""Opens whoever a recipe wants to show its run, and says where it is to be seen; one that cannot be opened is named and left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import config
from ..types import DirectAlignError
from . import trackers, trackers_trackio, trackers_wandb
from .trackers import About, Tracker
from .trackers_aside import Aside
from .trackers_board import Board

Say = Callable[[str], None]


def open_trackers(run: config.Run, out: Path, prompts: Sequence[str], say: Say) -> list[Tracker]:
    """The trackers of the run in `out`, whose sample grids show `prompts`; `say` prints a line for people.

    Raises: DirectAlignError for a package or a login that is missing, as `directalign check` says before.
    """
    about = trackers.about(run, out, prompts)
    asked = run.track
    opened: list[Tracker] = [Board(out, about)] if asked.tensorboard else []
    if asked.wandb is not None or asked.trackio is not None:
        trackers.remember(out, about.key, about.space)  # before they open: a run killed here is the same run when it is resumed
    if asked.wandb is not None:
        opened += _wandb(asked.wandb, out, about, say)
    if asked.trackio is not None and (trackio := _trackio(asked.trackio, about, say)):
        opened += trackio
        trackers.remember(out, about.key, trackers_trackio.place(asked.trackio))
    return opened


def _wandb(settings: config.Wandb, out: Path, about: About, say: Say) -> list[Tracker]:
    name, remedy = "Weights & Biases", trackers_wandb.remedy(out, about)
    return _aside(lambda: trackers_wandb.open_run(settings, out, about, say), name, remedy, say)


def _trackio(settings: config.Trackio, about: About, say: Say) -> list[Tracker]:
    return _aside(lambda: trackers_trackio.open_run(settings, about, say), "trackio", trackers_trackio.remedy(settings), say)


def _aside(opening: Callable[[], Tracker], name: str, remedy: str, say: Say) -> list[Tracker]:
    try:
        return [Aside(opening(), name, remedy, say)]
    except DirectAlignError:
        raise
    except Exception as error:  # a foreign library's: any kind
        reason = next(iter(str(error).splitlines()), "")
        say(f"warning: {name} cannot be opened ({type(error).__name__}: {reason:.200}); the run goes on without it. {remedy}")
        return []
