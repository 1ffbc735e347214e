"""Planted panels: annotators whose taste, and whose likeness to each other, are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from directalign.arena.records import AXES, LEVELS, Rating, Vote

MODELS = ("base", "srpo", "refl")


def planted_votes(
    strengths: Mapping[str, float],
    items: int,
    annotators: int,
    seed: int,
    alike: float = 0.0,
    ties: float = 0.0,
    pairs: Sequence[tuple[str, str]] = (),
) -> list[Vote]:
    """Votes of every annotator on every item and pair.

    With probability `alike` an annotator repeats the item's own answer, which keeps the win rates
    and correlates the votes on one item; a share `ties` of the answers is a tie instead.
    """
    asked = tuple(pairs) or tuple(combinations(strengths, 2))
    rng = np.random.default_rng(seed)
    chance = np.array([1 / (1 + np.exp(strengths[b] - strengths[a])) for a, b in asked])[:, None]
    common = rng.random((items, len(asked), 1)) < chance
    own, repeats, swapped, tied = rng.random((4, items, len(asked), annotators))
    won = np.where(repeats < alike, common, own < chance)
    votes = []
    for item, pair, annotator in np.ndindex(won.shape):
        a, b = asked[pair]
        winner = (
            None if tied[item, pair, annotator] < ties else a if won[item, pair, annotator] else b
        )
        left, right = (a, b) if swapped[item, pair, annotator] < 0.5 else (b, a)
        votes.append(Vote(f"annotator {annotator}", item, left, right, winner))
    return votes


def planted_ratings(
    quality: Mapping[str, float],
    items: int,
    annotators: int,
    seed: int,
    noise: float = 0.6,
    at: float | None = None,
) -> list[Rating]:
    """Levels from quality, difficulty of the item and noise; from time `at` every ten seconds."""
    rng = np.random.default_rng(seed)
    ratings = []
    for item in range(items):
        ease = rng.normal()
        for annotator in range(annotators):
            for model, good in quality.items():
                for axis in AXES:
                    place = int(np.clip(np.round(1.5 - good - ease - noise * rng.normal()), 0, 3))
                    ratings.append(
                        Rating(
                            f"annotator {annotator}",
                            item,
                            model,
                            axis,
                            LEVELS[place],
                            None if at is None else at + 10 * item,
                        )
                    )
    return ratings
