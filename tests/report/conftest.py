"""One browser, and folders that no test changes: a run, a demo of four runs, a comparison."""

import pytest

from chromium import headless
from comparison_folders import write_comparison
from synthetic_run import stop_run, write_demo, write_run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """A run that stopped after update 15 and kept the weights of update 10."""
    return stop_run(write_run(tmp_path_factory.mktemp("stopped") / "run"))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    return write_comparison(tmp_path_factory.mktemp("compared") / "out")
