"""Tiny checkpoints that reward tests share; `sections` writes each of `cases.CASES` once."""

from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rewards.cases import CASES


@pytest.fixture(scope="session")
def sections(tmp_path_factory):
    """The recipe section of a case, by its name."""
    return cache(lambda name: CASES[name](tmp_path_factory.mktemp(name)))


@pytest.fixture
def free_address():
    """Where nothing listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/score"
