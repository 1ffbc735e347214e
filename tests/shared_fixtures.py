"""Fixtures of all tests: tiny checkpoints, read-only; runs without what takes longer than they."""

import gc
import os
import sqlite3
import sys
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from directalign.arena import store
from directalign.preflight import memory
from directalign.training.live_page import LivePage
from tiny import tiny_flux, tiny_sd, tiny_sd_v
from tiny_rewards import clip_folder, siglip_folder, vlm_folder
from tiny_world import tiny_assets, world2

__all__ = ["clip_folder", "siglip_folder", "tiny_flux", "tiny_sd", "tiny_sd_v", "vlm_folder"]
__all__ += ["tiny_assets", "world2"]
TRACE, START, LOG_VALUES = memory.trace, LivePage.start, LivePage.log_values
CONNECT = store._connect
torch.set_num_threads(1)


def connect_quickly(uri: str) -> sqlite3.Connection:
    connection = CONNECT(uri)
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _start(page: LivePage) -> None:
    with mock.patch.object(page, "write"):
        START(page)


@pytest.fixture(scope="session", autouse=True)
def brief_runs() -> Iterator[None]:
    """Before a tiny training nothing is traced, no page is written until it ends, and nothing waits
    for a disk, which no killed process needs: each takes longer than the training does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        patch.setattr(store, "_connect", connect_quickly)
        patch.setattr(memory, "trace", lambda *_: memory.Traced())
        patch.setattr(LivePage, "start", _start)
        patch.setattr(LivePage, "log_values", lambda self, values, step: None)
        yield


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test that an arena's answers wait for the disk."""
    monkeypatch.setattr(store, "_connect", CONNECT)


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    """For the tests of what is traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "trace", TRACE)
        yield


@pytest.fixture(scope="module")
def live_pages() -> Iterator[None]:
    """For the tests of pages that are written while a run trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LivePage, "start", START)
        patch.setattr(LivePage, "log_values", LOG_VALUES)
        yield


def pytest_collection_finish() -> None:
    """The modules that are imported by now stay: no collection has to look at them again. Tests
    make many objects and few cycles: collections are a tenth as frequent. Nothing is written beside
    Python files that tests make."""
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()
    gc.set_threshold(7000)
