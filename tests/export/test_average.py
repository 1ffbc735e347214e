"""The algebra of averaged weights, in float64."""

import pytest
import torch
from torch import Tensor

from directalign.evaluation.run_weights import mean_weight
from directalign.export.average import mean_update, reduce_rank
from directalign.models.lora_files import LowRank

KERNELS = pytest.mark.parametrize("kernel", [(), (3, 3)])


def drawn(seed: int, rank: int = 2, kernel: tuple[int, ...] = ()) -> LowRank:
    """Of a layer from 7 to 5, with a convolution's `kernel`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (rank, 7, *kernel), (5, rank, *(1 for _ in kernel))
    return LowRank(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))


def product(update: LowRank) -> Tensor:
    return update.up.flatten(1) @ update.down.flatten(1)


def relative_error(update: LowRank, exact: LowRank) -> float:
    return float((product(update) - product(exact)).norm() / product(exact).norm())


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_weights_are_averaged_and_mixed_with_the_base(share):
    base, *tuned = (product(drawn(seed)) for seed in range(4))
    expected = (1 - share) * (tuned[0] + tuned[1] + tuned[2]) / 3 + share * base
    torch.testing.assert_close(mean_weight(tuned, base, share), expected)


def test_the_mean_of_bfloat16_weights_is_rounded_once():
    a, b = (torch.tensor(v, dtype=torch.bfloat16) for v in ([1.0, 256.0], [1.0078125, 258.0]))
    expected = ((2 * a.double() + b.double()) / 3).bfloat16()
    found = mean_weight([a, b, a], a, 0.0)
    assert found.dtype == torch.bfloat16 and found.equal(expected)


@KERNELS
def test_the_mean_update_is_the_mean_of_products(kernel):
    each = [drawn(seed, kernel=kernel) for seed in range(3)]
    found = mean_update(each)
    assert found.rank == 6 and found.down.shape[1:] == each[0].down.shape[1:]
    torch.testing.assert_close(product(found), sum(product(update) for update in each) / 3)


@KERNELS
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_reduced_rank_is_the_truncated_svd(rank, kernel):
    exact = mean_update([drawn(seed, kernel=kernel) for seed in range(2)])
    found, error = reduce_rank(exact, rank)
    values = torch.linalg.svdvals(product(exact))
    assert found.rank == rank and found.down.shape[1:] == exact.down.shape[1:]
    assert found.up.shape[2:] == exact.up.shape[2:]
    assert error == pytest.approx(relative_error(found, exact), abs=1e-12)
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-12)
    assert (error < 1e-12) == (rank == 4)


def test_a_zero_update_stays_zero():
    zero = LowRank(drawn(0, 4).down, torch.zeros(5, 4, dtype=torch.float64))
    found, error = reduce_rank(zero, 2)
    assert error == 0 and product(found).abs().max() == 0
