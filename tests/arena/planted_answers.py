"""Answers of annotators whose taste and agreement are known."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from directalign.arena.records import AXES, LEVELS, Rating, Vote

MODELS = ("base", "srpo", "refl")


def cast(winners: str, name: str = "ann", left: str = "base", right: str = "srpo") -> list[Vote]:
    """One vote per item: l for the left model, r for the right one, t for a tie."""
    models = {"l": left, "r": right, "t": None}
    return [Vote(name, item, left, right, models[one]) for item, one in enumerate(winners)]


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
    pairs = tuple(pairs) or tuple(combinations(strengths, 2))
    rng = np.random.default_rng(seed)
    chance = np.array([1 / (1 + np.exp(strengths[b] - strengths[a])) for a, b in pairs])[:, None]
    common = rng.random((items, len(pairs), 1)) < chance
    own, repeats, swapped, tied = rng.random((4, items, len(pairs), annotators))
    won = np.where(repeats < alike, common, own < chance)
    votes = []
    for place in np.ndindex(won.shape):
        item, pair, annotator = place
        a, b = pairs[pair]
        winner = None if tied[place] < ties else a if won[place] else b
        left, right = (a, b) if swapped[place] < 0.5 else (b, a)
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
        time = None if at is None else at + 10 * item
        for annotator in range(annotators):
            for model, good in quality.items():
                for axis in AXES:
                    place = int(np.clip(np.round(1.5 - good - ease - noise * rng.normal()), 0, 3))
                    level = LEVELS[place]
                    ratings.append(Rating(f"annotator {annotator}", item, model, axis, level, time))
    return ratings
