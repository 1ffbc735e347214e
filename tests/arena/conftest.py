"""One source, one server and one browser for all tests that leave them as they were."""

import pytest
from arena_servers import served, write_comparison

from chromium import headless


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        yield driver


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A comparison of two models on six prompts."""
    prompts = [f"prompt {index}" for index in range(6)]
    return write_comparison(tmp_path_factory.mktemp("source") / "source", prompts)


@pytest.fixture(scope="session")
def server(source, tmp_path_factory):
    """A server in vote mode on this machine only; every test joins under a name of its own."""
    with served(source, tmp_path_factory.mktemp("server") / "votes.sqlite") as found:
        yield found
