"""Counting storages: algebra on real tensors, and against what autograd says it keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from directalign.memory.live import LiveStorages, Piece, measured

KILO = 4 * 1000


def test_bytes_come_with_a_tensor_and_go_with_it() -> None:
    x = torch.zeros(1000)
    with LiveStorages([x]) as live:
        y = x * 2
        z = y + 1
        assert (live.now, live.peak) == (2 * KILO, 2 * KILO)
        del y
        assert (live.now, live.peak) == (KILO, 2 * KILO)
        z.mul_(3)
        assert x.add_(1) is x and live.now == KILO
    del z
    assert live.now == 0


def test_a_view_is_no_storage_of_its_own_and_keeps_the_one_it_looks_at() -> None:
    with LiveStorages() as live:
        view = torch.zeros(1000)[:10].view(2, 5)
        assert live.now == KILO
        del view
        assert live.now == 0


def test_what_is_kept_is_what_autograd_saves() -> None:
    """Counted a second way: the storages that pass through saved_tensors_hooks, and the result."""
    network = nn.Sequential(
        nn.Linear(30, 50), nn.GELU(), nn.LayerNorm(50), nn.Linear(50, 20), nn.SiLU()
    )
    x = torch.randn(7, 30)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(x)
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *network.parameters())}
    expected = sum(
        size
        for storage, size in saved.items()
        if storage not in own | {out.untyped_storage().data_ptr()}
    )
    piece = measured(lambda: network(x), [x, *network.parameters()])
    assert piece.kept == expected + out.untyped_storage().nbytes()
    assert piece.forward >= piece.kept and piece.backward >= piece.kept


def test_gradients_that_are_there_already_do_not_count_again() -> None:
    layer = nn.Linear(100, 100, bias=False)
    fresh = measured(lambda: layer(torch.ones(1, 100)), [*layer.parameters()])
    assert layer.weight.grad is not None
    again = measured(lambda: layer(torch.ones(1, 100)), [*layer.parameters(), layer.weight.grad])
    assert again.backward == fresh.backward, (
        "a gradient is made before it is added to the one that is there"
    )


def test_pieces_add_and_scale_by_element() -> None:
    one, two = Piece(3, 1, 2), Piece(5, 4, 6)
    assert two - one == Piece(2, 3, 4) and one + (two - one).times(2) == Piece(7, 7, 10)
