"""Everything that an arena's records say, gathered once: what the page, the tables and their caveats are made of.

Pure data from lists of records. Ratings are compared as votes too (see `wins`), on every scale; real votes stand by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..stats import Ranking
from .agreement import Agreement, agreement, rated, voted
from .annotators import Annotator, Side, rating_annotators, side, voting_annotators
from .levels import SCALES, Scale, Shares, incomplete, shares
from .ranking import rank_models
from .records import Rating, Vote, latest_ratings, latest_votes
from .wins import Wins, implied_votes, win_rates

VOTES = "votes"


@dataclass(frozen=True)
class Comparison:
    """Who is preferred to whom, pair by pair and as strengths."""

    wins: Sequence[Wins]
    ranking: Ranking


@dataclass(frozen=True)
class Results:
    """What the records say.

    `labels` are all models, by key, in the order of the page. `shares` and `comparisons` are keyed by scale, votes by `VOTES`; what nobody
    answered is left out. `unequal` are models that were rated on other items than the rest.
    """

    labels: Mapping[str, str]
    ratings: int
    votes: int
    items: int
    annotators: int
    incomplete: int
    unequal: Sequence[str]
    shares: Mapping[Scale, Sequence[Shares]]
    comparisons: Mapping[str, Comparison]
    agreement: Mapping[str, Agreement]
    raters: Sequence[Annotator]
    voters: Sequence[Annotator]
    side: Side | None


def gather(ratings: Sequence[Rating], votes: Sequence[Vote], labels: Mapping[str, str]) -> Results:
    """All of it, for the models named in `labels`; records of other models are left out. The latest answer to each question counts."""
    ratings = [one for one in latest_ratings(ratings) if one.model in labels]
    votes = [one for one in latest_votes(votes) if one.left in labels and one.right in labels]
    models, answers = list(labels), [*ratings, *votes]
    implied = {str(scale): implied_votes(ratings, scale) for scale in SCALES}
    compared = {source: found for source, found in {VOTES: votes, **implied}.items() if found}
    panels = {VOTES: voted(votes), **{str(scale): rated(ratings, scale) for scale in SCALES}}
    judged: dict[Scale, list[Shares]] = {scale: shares(ratings, scale, models) for scale in SCALES}
    return Results(
        labels=dict(labels),
        ratings=len(ratings),
        votes=len(votes),
        items=len({one.item for one in answers}),
        annotators=len({one.annotator for one in answers}),
        incomplete=incomplete(ratings),
        unequal=_unequal(ratings, models),
        shares={scale: found for scale, found in judged.items() if found},
        comparisons={source: _comparison(found, models) for source, found in compared.items()},
        agreement={source: agreement(panel) for source, panel in panels.items() if panel.annotators},
        raters=rating_annotators(ratings),
        voters=voting_annotators(votes),
        side=side(votes),
    )


def _comparison(votes: Sequence[Vote], models: Sequence[str]) -> Comparison:
    seen = {model for vote in votes for model in (vote.left, vote.right)}
    return Comparison(win_rates(votes, models), rank_models(votes, [model for model in models if model in seen]))


def _unequal(ratings: Sequence[Rating], models: Sequence[str]) -> list[str]:
    """Models whose items are not those of the model with the most."""
    items = {model: {one.item for one in ratings if one.model == model} for model in models}
    most = max(items.values(), key=len, default=set())
    return [model for model, own in items.items() if own and own != most]
