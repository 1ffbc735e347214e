"""Labels beside what they name and never over each other: along an edge (`apart`) and around points (`beside`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


Number = int | float


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: Number
    bottom: Number
    right: Number
    top: Number

    def overlap(self, other: Box) -> Number:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, wide) * max(0.0, high)


def apart(wanted: Sequence[Number], gap: Number, low: Number, high: Number) -> list[Number]:
    """Positions near the wanted ones, in their order, at least `gap` from each other and inside [low, high] where they fit.

    Neighbours that meet form a block around the mean of what they want, as beads pushed together on a wire.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[Number, int]] = []  # (sum of the starts that its members want for it, members)

    def start(block: tuple[Number, int]) -> Number:
        total, count = block
        return max(low, min(total / count, high - (count - 1) * gap))

    for index in order:
        blocks.append((wanted[index], 1))
        while len(blocks) > 1 and start(blocks[-2]) + blocks[-2][1] * gap > start(blocks[-1]):
            (second, more), (first, count) = blocks.pop(), blocks.pop()
            blocks.append((first + second - more * count * gap, count + more))
    spread = [start(block) + place * gap for block in blocks for place in range(block[1])]
    return [place for _, place in sorted(zip(order, spread, strict=True))]


def beside(points: Sequence[tuple[Number, Number]], sizes: Sequence[tuple[Number, Number]], frame: Box, taken: Sequence[Box] = ()) -> list[Box]:
    """A box of each size near its point, where it covers the least of `taken`, of other points and of boxes before it."""
    busy = [*taken, *(Box(x - 5, y - 5, x + 5, y + 5) for x, y in points)]
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        choices = list(_around(point, size))
        best = min(choices, key=lambda box: _cost(box, [*busy, *placed], frame) + 0.01 * choices.index(box))
        placed.append(best)
    return placed


def _around(point: tuple[Number, Number], size: tuple[Number, Number]) -> list[Box]:
    """Places to try, the favourite first: to the right, above, below, to the left, then farther away."""
    (x, y), (wide, high) = point, size
    boxes = []
    for far, (side, level) in product((9, 22, 40), ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))):
        left = x + side * far - (wide if side < 0 else wide / 2 if side == 0 else 0)
        bottom = y - high / 2 + level * (far if side else far + high / 2)
        boxes.append(Box(left, bottom, left + wide, bottom + high))
    return boxes


def _cost(box: Box, busy: Sequence[Box], frame: Box) -> Number:
    area = (box.right - box.left) * (box.top - box.bottom)
    return sum(box.overlap(other) for other in busy) + 5 * (area - box.overlap(frame))
