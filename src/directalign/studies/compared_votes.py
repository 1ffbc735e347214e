"""Votes of made-up annotators on models of known strength: do the arena's strengths, win rates and tests hold what they promise?

Model i is preferred to j with probability 1 / (1 + exp(θ_j − θ_i)). Annotators who look at the same two images agree more than by chance: a
vote falls to the left where √r·z + √(1−r)·e < Φ⁻¹(p), z of the item and pair, e of the annotator, so that its chance is p for any r.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch

from ..arena.records import Vote
from ..arena.statistics import rank_models, win_rates
from ..diffusion.rng import generator_for
from .compared_planted import FAMILY, SIGNIFICANT
from .running.records import Row


@dataclass(frozen=True)
class Electorate:
    """Strengths (log-odds, mean 0) of models, each two of which so many annotators compare on so many items; `likeness` is r."""

    name: str
    title: str
    strengths: tuple[float, ...]
    items: int = 30
    annotators: int = 3
    likeness: float = 0.5

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(f"m{place}" for place in range(len(self.strengths)))


def simulated_votes(electorate: Electorate, elections: int) -> Iterator[Row]:
    """How often intervals about the first model and the last held the truth, and how often tests spoke, over so many elections."""
    hits: Counter[str] = Counter()
    for place in range(elections):
        hits.update(_hits(electorate, votes_of(electorate, generator_for(place))))
    named = {"arm": electorate.name, "title": electorate.title, "seed": 0, "simulated": elections}
    for of in ("strength", "strength difference", "win"):
        yield {"kind": "votes", **named, "of": of, "covered": hits[of], "split": hits["split"]}
    for number in ("pair", FAMILY):
        yield {
            "kind": "votes test",
            **named,
            "number": number,
            "equal": len(set(electorate.strengths)) == 1,
            "spoke": hits[f"test {number}"],
        }


def votes_of(electorate: Electorate, generator: torch.Generator) -> list[Vote]:
    """One vote per annotator, item and pair; without ties."""
    pairs = list(combinations(range(len(electorate.strengths)), 2))
    shape = (electorate.items, len(pairs), electorate.annotators)
    chances = torch.tensor(
        [preferred(electorate.strengths[i], electorate.strengths[j]) for i, j in pairs],
        dtype=torch.float64,
    )
    same = torch.randn(shape[:2], dtype=torch.float64, generator=generator)[..., None]
    own = torch.randn(shape, dtype=torch.float64, generator=generator)
    for_first = (
        electorate.likeness**0.5 * same + (1 - electorate.likeness) ** 0.5 * own
        < torch.special.ndtri(chances)[:, None]
    )
    models = electorate.models
    return [
        Vote(f"person {person}", item, models[i], models[j], models[i if first else j])
        for item, of_item in enumerate(for_first.tolist())
        for (i, j), of_pair in zip(pairs, of_item, strict=True)
        for person, first in enumerate(of_pair)
    ]


def preferred(one: float, other: float) -> float:
    """The chance that a model of strength `one` is preferred to one of strength `other`."""
    return 1 / (1 + math.exp(other - one))


def _hits(electorate: Electorate, votes: list[Vote]) -> Iterator[str]:
    """The name of every interval that holds its truth, of every test below `SIGNIFICANT`, and "split" where strengths needed made-up ties."""
    first, last = electorate.models[0], electorate.models[-1]
    one, other = electorate.strengths[0], electorate.strengths[-1]
    ranking, wins = rank_models(votes, electorate.models), win_rates(votes, electorate.models)
    pair = next(won for won in wins if (won.a, won.b) == (first, last))
    intervals = {
        "strength": (ranking.interval(first), one),
        "strength difference": (ranking.difference(first, last), other - one),
        "win": (pair.rate, preferred(other, one)),
    }
    yield from (
        of for of, (interval, truth) in intervals.items() if interval.low <= truth <= interval.high
    )
    yield from ["test pair"] * (pair.p < SIGNIFICANT)
    yield from [f"test {FAMILY}"] * any(won.p_of_all < SIGNIFICANT for won in wins)
    yield from ["split"] * (ranking.prior_ties > 0)
