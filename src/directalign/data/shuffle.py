"""Order of the data as a pure function of the step, so that a resumed run gets the same batches.

The data is read epoch after epoch, each in its own seeded permutation; ranks and accumulated
batches take neighbouring slices of that endless sequence. Choices per update (a bucket of images,
a size) are drawn without replacement from shuffled decks. Only a cache is stored between calls.
"""

import random
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate


@lru_cache(maxsize=64)
def permutation(length: int, seed: int, epoch: int, stream: str = "order") -> tuple[int, ...]:
    """The order of one epoch, a permutation of range(length); `stream` separates uses."""
    order = list(range(length))
    random.Random(f"directalign {stream} {seed} {epoch}").shuffle(order)
    return tuple(order)


def indices(length: int, seed: int, first: int, count: int) -> list[int]:
    """The items at positions `first` to `first + count - 1` of the endless sequence of epochs."""
    assert length > 0 and first >= 0, (length, first)
    return [
        permutation(length, seed, position // length)[position % length]
        for position in range(first, first + count)
    ]


def turn(weights: tuple[int, ...], seed: int, step: int, stream: str) -> tuple[int, int]:
    """(choice, number of earlier steps with the same choice) at `step`.

    A deck of sum(weights) cards, weights[i] of them for choice i, is shuffled and dealt, one card
    per step, then shuffled again: after each whole deck the proportions are exact.
    """
    assert sum(weights) > 0 and step >= 0, (weights, step)
    if len(weights) == 1:
        return 0, step
    deck, position = divmod(step, sum(weights))
    choice, earlier = _dealt(weights, seed, deck, stream)[position]
    return choice, deck * weights[choice] + earlier


@lru_cache(maxsize=4)
def _dealt(
    weights: tuple[int, ...], seed: int, deck: int, stream: str
) -> tuple[tuple[int, int], ...]:
    """Per card of a deck: its choice, and the number of earlier cards with the same choice."""
    ends, seen, dealt = list(accumulate(weights)), [0] * len(weights), []
    for card in permutation(ends[-1], seed, deck, stream):
        choice = bisect_right(ends, card)
        dealt.append((choice, seen[choice]))
        seen[choice] += 1
    return tuple(dealt)
