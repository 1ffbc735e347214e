"""trackio, in its store on this machine or in a Space of Hugging Face. The package is imported here alone, when a recipe asks for it.

On this machine a resumed run is written anew from the records that it kept, and nothing leaves the machine: trackio's look-up of
the account that is logged in is off, as are its statistics of processor and GPU. A Space, which is private when it is made here,
goes on with the run of the same name; what it has beyond the checkpoint cannot be taken back.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import Context, copy_context
from types import ModuleType
from typing import Any

import huggingface_hub

from .. import config
from ..types import DirectAlignError
from .trackers import PICTURES, About, Pixels, Values

REDIRECTIONS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables under which trackio sends what the recipe keeps on this machine."""


def require(settings: config.Trackio) -> ModuleType:
    """The package, which must be installed and, for a Space, logged in. Nothing is sent. Raises DirectAlignError with the line that mends it."""
    try:
        import trackio
    except ImportError as error:
        raise DirectAlignError("track.trackio: needs the package trackio; pip install 'directalign[trackio]', or leave track.trackio out") from error
    if settings.space is not None and huggingface_hub.get_token() is None:
        raise DirectAlignError(f"track.trackio.space: {settings.space} needs a login; run `hf auth login`, set HF_TOKEN, or leave the space out")
    elsewhere = next((name for name in REDIRECTIONS if os.environ.get(name)), None)
    if settings.space is None and elsewhere is not None:
        raise DirectAlignError(f"track.trackio: {elsewhere} is set and would send the run away; unset it, or write the Space into track.trackio.space")
    return trackio


class TrackioRun:
    """An open run. trackio keeps the current run of a context: this one has its own, so that it is finished once and touches no other."""

    def __init__(self, package: ModuleType, context: Context, run: Any, caption: str, remembers: bool) -> None:
        self._trackio, self._context, self._run, self._caption, self.remembers = package, context, run, caption, remembers
        self._last_step = 0

    def record(self, values: Values, step: int) -> None:
        self._last_step = max(self._last_step, step)
        self._run.log(dict(values), step=step)

    def picture(self, pixels: Pixels, step: int) -> None:
        self._run.log({PICTURES: self._trackio.Image(pixels, caption=self._caption)}, step=step)

    def summary(self, found: Mapping[str, Any]) -> None:
        self._run.log({"summary": self._trackio.Markdown(_table(found))}, step=self._last_step)

    def close(self, finished: bool) -> None:
        with redirect_stdout(io.StringIO()):  # it speaks of uploads, on this machine too
            self._context.run(self._trackio.finish)


def open_run(settings: config.Trackio, about: About, say: Callable[[str], None]) -> TrackioRun:
    """The run called `run_name(about)` in the project. Raises DirectAlignError as `require`, and whatever trackio raises."""
    trackio = require(settings)
    name, is_local, context = run_name(about), settings.space is None, copy_context()
    if is_local:
        _forget(trackio, settings.project, name)
    with _offline() if is_local else redirect_stdout(io.StringIO()):
        run = context.run(
            trackio.init,
            project=settings.project,
            name=name,
            space_id=settings.space,
            private=True,
            config=dict(about.config),
            resume="never" if is_local else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    say(f"trackio: run {name} in {settings.space}" if settings.space else f"trackio: run {name}; see it with trackio show --project {settings.project}")
    return TrackioRun(trackio, context, run, about.caption, remembers=not is_local and about.space == place(settings))


def run_name(about: About) -> str:
    """`NAME-KEY`; trackio names a folder of images after it, so that slashes and dots go."""
    return f"{re.sub(r'[^A-Za-z0-9_, ()-]+', '_', about.name)}-{about.key}"


def place(settings: config.Trackio) -> str | None:
    """Where a run is sent, for `tracked.json`."""
    return None if settings.space is None else f"{settings.space} {settings.project}"


def remedy(settings: config.Trackio) -> str:
    """How to bring a run there later."""
    if settings.space is None:
        return "To catch up: --resume it, which writes it anew"
    send = f"trackio sync --project {settings.project} --space-id {settings.space}"
    return f"To catch up: --resume it with --set track.trackio.space=null, which writes it anew on this machine, then {send}"


def _forget(trackio: ModuleType, project: str, name: str) -> None:
    """What an earlier process wrote of this run into the local store."""
    try:
        runs = list(trackio.Api().runs(project))
    except ValueError:  # no such project yet
        return
    for run in runs:
        if run.name == name:
            run.delete()


@contextmanager
def _offline() -> Iterator[None]:
    """No request to the hub inside, and no chatter about it."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _table(found: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in found.items())
    return f"| | |\n|---|---|\n{rows}"
