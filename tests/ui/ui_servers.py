"""Servers of the page of runs: in a thread of this process, or as the real command. Both, and what
they start, are forks of this process."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import httpx

import forked
from directalign.ui import runs as ui_runs
from directalign.ui.runs import Runs
from directalign.ui.server import Access, create_app
from directalign.web.server import http_server, listen


@dataclass
class Server:
    """A running server: `link` is what the command prints."""

    address: str
    runs: Runs
    link: str

    def visitor(self) -> httpx.Client:
        """A browser without a cookie."""
        return httpx.Client(base_url=self.address, timeout=60)


@contextmanager
def served(folder: Path, host: str | None = None) -> Iterator[Server]:
    """The runs of a folder, until the block ends."""
    with mock.patch.object(ui_runs, "subprocess", forked.MODULE):
        yield from _served(folder, host)


def _served(folder: Path, host: str | None) -> Iterator[Server]:
    runs, access, listening = Runs(folder), Access(host), listen(host or "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    running = http_server(create_app(runs, host, access))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.005)
        yield Server(address, runs, f"{address}/open/{access.token}")
    finally:
        running.should_exit = running.force_exit = True
        thread.join()


@contextmanager
def commanded(folder: Path, *options: str) -> Iterator[str]:
    """`directalign ui` in a process of its own; yields the link that it prints."""
    words = ["ui", str(folder), "--port", "0", *options]
    command = [sys.executable, "-m", "directalign", *words]
    with mock.patch.object(ui_runs, "subprocess", forked.MODULE):
        process = forked.popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait(300) == 130
        process.stdout.close()
