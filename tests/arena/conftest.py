"""The arena's log is on in every test here, whatever another library's setup did to all loggers before."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def log_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("directalign", "directalign.arena"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
