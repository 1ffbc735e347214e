"""What was found out about images, fact by fact, and the numbers and records that this becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...types import PerSample

ADHERENCE = "adherence"


@dataclass(frozen=True)
class Verdict:
    """One fact in words, whether the image shows it, and what was seen instead or how surely."""

    fact: str
    right: bool
    saw: str


@dataclass(frozen=True)
class Judged:
    """One image: the tag of its prompt's set (None of a free prompt), and a verdict on each fact."""

    tag: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> bool:
        """Whether all facts are."""
        return all(verdict.right for verdict in self.verdicts)

    def record(self) -> list[dict[str, Any]]:
        """For a line of results: [{"fact", "right", "saw"}, ...]."""
        return [asdict(verdict) for verdict in self.verdicts]


def numbers(judged: Sequence[Judged]) -> dict[str, PerSample]:
    """`adherence`, 1.0 where all facts of an image are right and else 0.0, and `adherence_<tag>` of each tag that comes up.

    Each is (b,); where an image's prompt has another tag, it is NaN: that image has no such number.
    """
    tags = dict.fromkeys(each.tag for each in judged if each.tag is not None)
    found = {ADHERENCE: torch.tensor([float(each.right) for each in judged])}
    return found | {f"{ADHERENCE}_{tag}": torch.tensor([float(each.right) if each.tag == tag else math.nan for each in judged]) for tag in tags}
