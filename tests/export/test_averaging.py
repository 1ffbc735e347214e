"""The algebra of averaged weights, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from directalign.export.average import mean_update, mean_weight, reduced
from directalign.export.lora_formats import LowRank


def drawn(seed: int, rank: int = 2, sides: tuple[int, ...] = ()) -> LowRank:
    """Of a layer from 7 to 5; `sides` are those of a convolution's kernel."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((rank, 7, *sides), (5, rank, *(1 for _ in sides))))
    return LowRank(down, up)


def product(update: LowRank) -> Tensor:
    return update.up.flatten(1) @ update.down.flatten(1)


def relative(update: LowRank, whole: LowRank) -> float:
    return float((product(update) - product(whole)).norm() / product(whole).norm())


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_whole_weights_are_averaged_and_mixed_with_the_base(share: float) -> None:
    base, *tuned = (product(drawn(seed)) for seed in range(4))
    torch.testing.assert_close(mean_weight(tuned, base, share), (1 - share) * (tuned[0] + tuned[1] + tuned[2]) / 3 + share * base)


def test_a_sum_of_narrow_weights_is_rounded_once() -> None:
    tuned = [torch.tensor([1.0, 256.0], dtype=torch.bfloat16), torch.tensor([1.0078125, 258.0], dtype=torch.bfloat16)]
    found = mean_weight([*tuned, *tuned[:1]], tuned[0], 0.0)
    assert found.dtype == torch.bfloat16 and found.equal(((2 * tuned[0].double() + tuned[1].double()) / 3).bfloat16())


@pytest.mark.parametrize("sides", [(), (3, 3)])
def test_the_mean_of_updates_is_that_of_their_products_and_not_of_their_factors(sides: tuple[int, ...]) -> None:
    each = [drawn(seed, sides=sides) for seed in range(3)]
    found = mean_update(each, 0.25)
    expected = 0.75 * sum(product(update) for update in each) / 3
    assert found.rank == 6 and found.down.shape[1:] == each[0].down.shape[1:]
    torch.testing.assert_close(product(found), expected)
    apart = LowRank(sum(update.down for update in each) / 3, 0.75 * sum(update.up for update in each) / 3)
    assert (product(apart) - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("sides", [(), (3, 3)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_lower_rank_is_the_nearest_one_and_says_how_far_it_is(rank: int, sides: tuple[int, ...]) -> None:
    whole = mean_update([drawn(seed, sides=sides) for seed in range(2)], 0.0)
    found, error = reduced(whole, rank)
    values = torch.linalg.svdvals(product(whole))
    assert found.rank == rank and found.down.shape[1:] == whole.down.shape[1:] and found.up.shape[2:] == whole.up.shape[2:]
    assert error == pytest.approx(relative(found, whole), abs=1e-12)
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-12)
    assert (error < 1e-12) == (rank == 4)


def test_updates_that_share_a_factor_lose_nothing_at_their_own_rank() -> None:
    first = drawn(0)
    whole = mean_update([first, LowRank(first.down, drawn(1).up)], 0.0)
    found, error = reduced(whole, 2)
    assert error < 1e-12 and relative(found, whole) < 1e-12


def test_an_update_of_nothing_stays_nothing() -> None:
    nothing = LowRank(drawn(0, 4).down, torch.zeros(5, 4, dtype=torch.float64))
    found, error = reduced(nothing, 2)
    assert error == 0 and product(found).abs().max() == 0
