"""One browser for all page tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from chromium import headless


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
