"""Here the memory of activations is traced."""

import pytest

from tiny import WRITERS


@pytest.fixture(scope="module", autouse=True)
def _traced(traced):
    pass


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A tiny pipeline of each architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: write(folder / name) for name, write in WRITERS.items()}
