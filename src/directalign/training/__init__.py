"""Training: `run` trains a recipe, `train_once` unless it is trained; `loop.train` is the loop."""

from .loop import Interrupted
from .run import run, train_once

__all__ = ["Interrupted", "run", "train_once"]
