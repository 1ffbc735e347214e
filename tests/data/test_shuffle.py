"""The order of the data: every item once per epoch, every choice in proportion."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from directalign.data.shuffle import indices, permutation, turn

small = st.integers(1, 5)
packs = st.lists(st.integers(0, 6), min_size=1, max_size=5).map(tuple).filter(any)


@given(
    length=st.integers(1, 30),
    seed=st.integers(0, 99),
    cut=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_every_item_is_seen_once_per_epoch_however_the_row_is_cut(length, seed, cut):
    seen: list[int] = []
    while len(seen) < 2 * length:
        for count in cut:
            seen += indices(length, seed, len(seen), count)
    assert sorted(seen[:length]) == sorted(seen[length : 2 * length]) == list(range(length))
    assert seen == indices(length, seed, 0, len(seen))


def test_the_order_depends_on_seed_epoch_and_use():
    orders = {
        permutation(50, seed, epoch, stream)
        for seed in range(3)
        for epoch in range(3)
        for stream in ("order", "sizes")
    }
    assert len(orders) == 18


def test_the_order_never_changes_between_versions():
    assert permutation(6, 0, 0) == (2, 5, 1, 4, 0, 3)
    expected = [(2, 0), (2, 1), (0, 0), (2, 2), (0, 1), (1, 0), (2, 3)]
    assert [turn((2, 1, 3), 0, step, "buckets") for step in range(7)] == expected


@given(weights=packs, seed=st.integers(0, 99), rounds=small)
def test_choices_come_up_in_exact_proportion(weights, seed, rounds):
    steps = range(rounds * sum(weights))
    dealt = Counter(turn(weights, seed, step, "buckets")[0] for step in steps)
    assert dealt == {choice: rounds * weight for choice, weight in enumerate(weights) if weight}


@given(weights=packs, seed=st.integers(0, 99), last=st.integers(0, 60))
def test_a_turn_counts_the_same_choices_before_it(weights, seed, last):
    before = [turn(weights, seed, step, "buckets")[0] for step in range(last)]
    choice, earlier = turn(weights, seed, last, "buckets")
    assert earlier == before.count(choice)


def test_packs_are_shuffled_anew_and_by_seed():
    rows = [
        tuple(turn((5, 5, 5), seed, 15 * pack + card, "sizes")[0] for card in range(15))
        for seed in range(3)
        for pack in range(3)
    ]
    assert len(set(rows)) == 9
