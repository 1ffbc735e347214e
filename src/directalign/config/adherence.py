"""What judges whether an image shows what its prompt says: a detector under GenEval's rules, or questions to a vision-language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from .base import Strict
from .rewards import Clip, Vlm

Share = Annotated[float, Field(ge=0, le=1)]


class Detector(Strict):
    """Boxes of a detector, judged by GenEval's rules (arXiv 2310.11513); for prompt sets that say what must be there."""

    name: Literal["detector"] = "detector"
    path: str = Field(description="A transformers folder or hub id of a Mask2Former, RT-DETR, D-FINE (classes of COCO) or OWLv2 (any words).")
    threshold: Share | None = Field(default=None, description="Boxes with a lower score are nothing; none takes what is usual for the kind of detector.")
    counting_threshold: Share | None = Field(default=None, description="The same for prompts that ask for a number; none takes what is usual.")
    max_overlap: Share = Field(
        default=1.0, description="Boxes of a class that share more than this with a surer one (intersection over union) are dropped; 1 drops none."
    )
    colors: Clip | None = Field(default=None, description="The CLIP that names the colour of what was found; needed where prompts ask for colours.")


Adherence = Annotated[Detector | Vlm, Discriminator("name")]
"""A `vlm` is the reward of that name: each fact, or a prompt without facts, becomes a question, answered yes where P(yes) is above one half."""
