"""Which items of a data set one update sees: a pure function of the step, so a resumed run sees exactly what it would have seen.

The data is read epoch after epoch, each in its own seeded permutation; ranks and accumulated batches take neighbouring
slices of that endless row. Where an update must choose (a bucket of images, a size), the choices are dealt out like a
shuffled pack of cards, again without memory. Nothing is kept between calls but a cache.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate


@lru_cache(maxsize=64)
def permutation(length: int, seed: int, epoch: int, stream: str = "order") -> tuple[int, ...]:
    """The order of one epoch: a permutation of range(length) that depends on the arguments alone; `stream` names its use."""
    order = list(range(length))
    random.Random(f"directalign {stream} {seed} {epoch}").shuffle(order)
    return tuple(order)


def indices(length: int, seed: int, first: int, count: int) -> list[int]:
    """The items at places `first` to `first + count - 1` of the endless row; every item is seen once per `length` places."""
    assert length > 0 and first >= 0, (length, first)
    return [permutation(length, seed, place // length)[place % length] for place in range(first, first + count)]


def turn(weights: tuple[int, ...], seed: int, step: int, stream: str) -> tuple[int, int]:
    """(choice, how many earlier steps made the same choice) at `step`, where choice i comes up in proportion to weights[i].

    A pack of sum(weights) cards, weights[i] of them for choice i, is shuffled and dealt out, one card a step, and then
    shuffled anew: after each whole pack the proportions are exact.
    """
    assert sum(weights) > 0 and step >= 0, (weights, step)
    if len(weights) == 1:
        return 0, step
    pack, place = divmod(step, sum(weights))
    choice, earlier = _dealt(weights, seed, pack, stream)[place]
    return choice, pack * weights[choice] + earlier


@lru_cache(maxsize=4)
def _dealt(weights: tuple[int, ...], seed: int, pack: int, stream: str) -> tuple[tuple[int, int], ...]:
    """Per card of one pack: its choice, and how many cards before it in the pack say the same."""
    ends, seen, dealt = list(accumulate(weights)), [0] * len(weights), []
    for card in permutation(ends[-1], seed, pack, stream):
        choice = bisect_right(ends, card)
        dealt.append((choice, seen[choice]))
        seen[choice] += 1
    return tuple(dealt)
