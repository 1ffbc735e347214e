"""Tiny checkpoints that reward tests share; `sections` writes each of `cases.CASES` once."""

from functools import cache

import pytest

from rewards.cases import CASES


@pytest.fixture(scope="session")
def sections(tmp_path_factory):
    """The recipe section of a case, by its name."""
    return cache(lambda name: CASES[name](tmp_path_factory.mktemp(name)))
