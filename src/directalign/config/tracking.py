"""Where a run's records are shown besides `metrics.jsonl`: the same scalars and sample grids in TensorBoard, Weights & Biases and trackio.

There is no field for a key or a token: who you are is taken from the environment or a former login, and never recorded.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Strict


class Wandb(Strict):
    """Weights & Biases."""

    project: str = Field(description="The project that the run belongs to.", min_length=1, max_length=128, pattern=r"^[^/\\#?,%:]+$")
    entity: str | None = Field(default=None, description="The user or team whose project it is; none takes the one logged in.", min_length=1)
    name: str | None = Field(default=None, description="What the run is called there; none takes the recipe's name.", min_length=1)
    mode: Literal["online", "offline"] = Field(
        default="online", description="online sends while the run goes on; offline writes into the output folder, for `wandb sync`, and needs no login."
    )
    tags: list[str] = Field(default_factory=list, description="Labels of the run there.")


class Trackio(Strict):
    """trackio, on this machine or in a Space of Hugging Face."""

    project: str = Field(description="The project that the run belongs to: letters, digits, _ and -.", pattern=r"^[A-Za-z0-9_-]+$")
    space: str | None = Field(
        default=None, description="owner/name of a Space that shows it; none keeps it on this machine, for `trackio show`.", pattern=r"^[^/\s]+/[^/\s]+$"
    )


class Track(Strict):
    """Who shows the records; metrics.jsonl has them in any case."""

    tensorboard: bool = Field(default=True, description="Event files in the output folder.")
    wandb: Wandb | None = Field(default=None, description="Weights & Biases; needs pip install 'directalign[wandb]'.")
    trackio: Trackio | None = Field(default=None, description="trackio; needs pip install 'directalign[trackio]'.")
