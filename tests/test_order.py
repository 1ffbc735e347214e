"""The order of the data is a pure function of the step: every item once per epoch, however ranks and batches cut it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from directalign.order import indices, permutation

small = st.integers(1, 5)


@given(length=st.integers(1, 30), seed=st.integers(0, 99), world_size=small, size=small, accumulation=small)
def test_every_item_is_seen_once_per_epoch(length: int, seed: int, world_size: int, size: int, accumulation: int) -> None:
    seen: list[int] = []
    step = 0
    while len(seen) < 2 * length:
        for micro in range(accumulation):
            for rank in range(world_size):
                seen += indices(length, seed, step=step, rank=rank, world_size=world_size, size=size, micro=micro, accumulation=accumulation)
        step += 1
    assert sorted(seen[:length]) == sorted(seen[length : 2 * length]) == list(range(length))


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {permutation(50, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_never_changes_between_versions() -> None:
    assert permutation(6, 0, 0) == (2, 5, 1, 4, 0, 3)
