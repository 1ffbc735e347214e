"""Random latents and scores in float64, shared by the identities."""

import pytest
import torch


@pytest.fixture
def latents():
    """(x0, noise, pred), each (3, 4, 5, 6)."""
    generator = torch.Generator().manual_seed(7)
    x0, noise, pred = torch.randn(3, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    return x0, noise, pred


@pytest.fixture
def scores():
    """(pos, neg, plain), each (4,)."""
    pos, neg, plain = torch.rand(
        3, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    return pos, neg, plain
