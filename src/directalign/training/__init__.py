"""Training: `run` trains a recipe; `loop.train` is the training loop."""

from .loop import Interrupted
from .run import run

__all__ = ["Interrupted", "run"]
