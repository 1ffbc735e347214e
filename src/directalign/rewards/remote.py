"""A reward behind HTTP: to come."""

from __future__ import annotations

import torch

from .. import config
from ..interfaces import Reward
from ..types import DirectAlignError


def load(settings: config.Remote, device: torch.device | str = "cpu", key: str = "reward") -> Reward:
    """To come."""
    raise DirectAlignError(f"{key}.name: {settings.name} is not there yet")


def check(settings: config.Remote, key: str = "reward", online: bool = False) -> None:
    """To come."""
    raise DirectAlignError(f"{key}.name: {settings.name} is not there yet")
