"""One browser for all page tests, and the arena's log enabled in every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from chromium import headless


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        yield driver


@pytest.fixture(autouse=True)
def log_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries may have disabled all loggers."""
    for name in ("directalign", "directalign.arena"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
