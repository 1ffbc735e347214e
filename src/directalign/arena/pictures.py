"""Images on the page of results: prompts on which people preferred a model most, and least.

The database remembers where its images were; without them, or if they have changed, the page has
none and says so.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..report.images import BUDGET, fitted, read_image
from .records import ArenaError, Vote
from .sources import UNREADABLE, Item, read_sources
from .store import Store

SHOWN = 3
"""Prompts of each kind."""
MAX_MODELS = 6


@dataclass(frozen=True)
class Picture:
    """The image of a model: a data URI, and how many `votes` of those on it at this prompt it
    `won` (ties count half)."""

    model: str
    uri: str
    won: float
    votes: int


@dataclass(frozen=True)
class Pictured:
    """A prompt with the images of all models, and whether `model` won or lost there."""

    prompt: str
    seed: int | None
    has_won: bool
    pictures: Sequence[Picture]


def pictured(
    store: Store, votes: Sequence[Vote], models: Sequence[str]
) -> tuple[list[Pictured], str]:
    """The prompts on which the first of the `models` won and lost most clearly, and why there is
    none: "" if there are some, or no votes."""
    if not votes or not store.sources:
        return [], ""
    chosen = _chosen(votes, models[0])
    try:
        items = read_sources(store.sources).items
        for index in chosen:
            if index not in items or items[index].digest() != store.items()[index][2]:
                raise ArenaError(f"those of item {index} have changed")
        shown = models[:MAX_MODELS]
        images = [read_image(items[index].files[key]) for index in chosen for key in shown]
    except (ArenaError, *UNREADABLE) as error:
        return [], f"The page has no pictures: the images cannot be read ({error})."
    uris = iter(fitted(images, BUDGET))
    found = []
    for index, has_won in chosen.items():
        own = {key: next(uris) for key in shown}
        found.append(_pictured(items[index], votes, own, has_won))
    return found, ""


def _chosen(votes: Sequence[Vote], best: str) -> dict[int, bool]:
    """Items by whether the model won there, the clearest of both kinds."""
    margins = Counter[int]()
    for vote in votes:
        if best in (vote.left, vote.right):
            margins[vote.item] += (vote.winner == best) - (vote.winner not in (best, None))
    ranked = margins.most_common()
    won = [item for item, margin in ranked if margin > 0][:SHOWN]
    lost = [item for item, margin in reversed(ranked) if margin < 0][:SHOWN]
    return dict.fromkeys(won, True) | dict.fromkeys(lost, False)


def _pictured(
    item: Item, votes: Sequence[Vote], uris: Mapping[str, str], has_won: bool
) -> Pictured:
    here = [vote for vote in votes if vote.item == item.index]
    pictures = []
    for model, uri in uris.items():
        own = [vote for vote in here if model in (vote.left, vote.right)]
        won = sum((vote.winner == model) + (vote.winner is None) / 2 for vote in own)
        pictures.append(Picture(model, uri, won, len(own)))
    return Pictured(item.prompt, item.seed, has_won, pictures)
