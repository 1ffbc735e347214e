"""Here the memory of activations is traced."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _traced(traced):
    pass
