"""One source, one server and one browser for all tests that leave them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena_servers import Server, served, write_comparison

from chromium import headless


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        yield driver


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two models on six prompts."""
    prompts = [f"prompt {index}" for index in range(6)]
    return write_comparison(tmp_path_factory.mktemp("source") / "source", prompts)


@pytest.fixture(scope="session")
def server(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in vote mode on this machine only; every test joins under a name of its own."""
    with served(source, tmp_path_factory.mktemp("server") / "votes.sqlite") as found:
        yield found
