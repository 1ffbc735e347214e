"""Preference pairs from the answers of an arena, to train on (`data.pairs`, docs/data.md).

A prompt and seed gives a pair of two models' images where more annotators preferred one of them
than the other. Ties count for neither, and where nobody decides, or as many for each, there is no
pair. Ratings count as votes by their overall level, as on the page of results: two images of one
level, both good or both bad, are a tie. Each annotator counts once, by the latest answer.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.atomic import disk_errors, new_folder
from .records import ArenaError, Vote, latest
from .sources import Item, read_sources
from .statistics import implied_votes
from .store import Store

PAIRS, IMAGES = "pairs.jsonl", "images"


@dataclass(frozen=True)
class Decided:
    """Two models' images of an item, and how many annotators preferred each of them."""

    item: int
    chosen: str
    rejected: str
    won: int
    lost: int
    ties: int


@dataclass(frozen=True)
class Exported:
    """`pairs` written, `undecided` ones left out, `votes` on both."""

    file: Path
    pairs: int
    undecided: int
    votes: int


def decide(votes: Sequence[Vote]) -> tuple[list[Decided], int]:
    """The pairs that a majority decided, by item, and the number of the others."""
    counts = defaultdict[tuple[int, frozenset[str]], Counter[str | None]](Counter)
    for vote in latest(votes):
        counts[vote.item, frozenset((vote.left, vote.right))][vote.winner] += 1
    decided, undecided = [], 0
    for (item, models), count in sorted(counts.items(), key=lambda each: (each[0][0], *each[0][1])):
        chosen, rejected = sorted(models, key=lambda model: (-count[model], model))
        won, lost = count[chosen], count[rejected]
        if won > lost:
            decided.append(Decided(item, chosen, rejected, won, lost, count[None]))
        else:
            undecided += 1
    return decided, undecided


def write_pairs(database: Path, out: Path) -> Exported:
    """Write `out`, a new folder with pairs.jsonl and copies of the images; safe while the arena
    runs.

    Raises: ArenaError if no pair is decided, or the images are gone or others; DirectAlignError if
    `out` exists.
    """
    store = Store(database)
    try:
        ratings, labels, digests = latest(store.ratings()), store.models(), store.items()
        votes = [*store.votes(), *implied_votes(ratings, "overall")]
        sources = store.sources
    finally:
        store.close()
    decided, undecided = decide(votes)
    if not decided:
        found = f"{len(votes)} votes, none of which decides between two images"
        raise ArenaError(f"{database}: {found}; collect more, and export again")
    items = read_sources(sources).items
    for item in {pair.item for pair in decided}:
        if item not in items or items[item].digest() != digests[item][2]:
            raise ArenaError(
                f"{database}: the images of item {item} have changed since the vote; restore "
                f"{', '.join(map(str, sources))}"
            )
    with disk_errors(out), new_folder(out) as folder:
        _write(folder, decided, items, list(labels))
    return Exported(out / PAIRS, len(decided), undecided, len(votes))


def _write(
    folder: Path, decided: Sequence[Decided], items: Mapping[int, Item], models: list[str]
) -> None:
    (folder / IMAGES).mkdir()
    lines = []
    for pair in decided:
        item, names = items[pair.item], {}
        for key, model in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            source = item.files[model]
            name = f"{IMAGES}/{pair.item:06d}-{models.index(model)}{source.suffix.lower()}"
            if not (folder / name).exists():  # of another pair with this image
                shutil.copyfile(source, folder / name)
            names[key] = name
        counts = {"chosen": pair.won, "rejected": pair.lost, "ties": pair.ties}
        row = {"prompt": item.prompt, **names, "seed": item.seed, "votes": counts}
        lines.append(json.dumps(row, ensure_ascii=False))
    (folder / PAIRS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
