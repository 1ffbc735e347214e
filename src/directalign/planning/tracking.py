"""What is wrong with who is to show a run: a package that is not installed, a login that is missing. Nothing is sent."""

from __future__ import annotations

from .. import config
from ..training import trackers
from ..types import DirectAlignError


def check_track(run: config.RunConfig, is_here: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """Where the run will be seen besides TensorBoard, and doubts: what is missing is an error where the run is meant for this machine."""
    try:
        return _shown(run.track), []
    except DirectAlignError as error:
        if is_here:
            raise
        return [], [str(error)]


def _shown(track: config.TrackersConfig) -> list[tuple[str, str]]:
    shown = []
    if track.wandb is not None:
        trackers.require_wandb(track.wandb)
        shown.append(("W&B", f"{track.wandb.mode}, project {track.wandb.project}"))
    if track.trackio is not None:
        trackers.require_trackio(track.trackio)
        shown.append(("trackio", f"{track.trackio.space or 'on this machine'}, project {track.trackio.project}"))
    return shown
