"""Small sources for an arena, and servers in a thread or in a process of their own."""

import csv
import io
import json
import logging
import secrets
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, PngImagePlugin

import forked
from directalign.arena.server import create_app
from directalign.arena.session import Arena, open_arena
from directalign.web.server import http_server, listen

SECRETS = ("SECRETMODEL", "SECRETFILE", "SECRETTEXT")
"""Parts of names, files and labels of a source that no annotator may receive."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Made once, since httpx takes long to make one per client."""


def write_comparison(
    folder: Path,
    prompts: Sequence[str],
    models: Sequence[str] = ("SECRETMODEL-a", "SECRETMODEL-b"),
    size: int = 24,
) -> Path:
    """A comparison folder; every image has its own colour, and a text chunk with the model."""
    rows = []
    for number, key in enumerate(models):
        (folder / "images" / key).mkdir(parents=True, exist_ok=True)
        for index, prompt in enumerate(prompts):
            name = f"images/{key}/SECRETFILE-{index:05d}.png"
            note = PngImagePlugin.PngInfo()
            note.add_text("model", f"SECRETTEXT {key}")
            image = Image.new("RGB", (size, size), (10 + 40 * number, 7 * index % 256, 90))
            image.save(folder / name, pnginfo=note)
            rows.append({"model": key, "index": index, "prompt": prompt, "seed": index})
            rows[-1] |= {"file": name, "group": None, "numbers": {}}
    known = [{"key": key, "label": f"Label of {key}"} for key in models]
    (folder / "comparison.json").write_text(json.dumps({"format": 1, "models": known}))
    write_rows(folder / "results.jsonl", rows)
    return folder


def write_rows(file: Path, rows: Sequence[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def joining(name: str, invitation: str = "") -> dict[str, str]:
    """What a browser posts to join."""
    return {"request": secrets.token_hex(16), "name": name, "invitation": invitation}


def number_of(client: httpx.Client | httpx.AsyncClient) -> int:
    """The annotator whose session a browser has."""
    cookies = client.cookies.items()
    return next(int(value.split(".")[0]) for name, value in cookies if "owner" not in name)


def vote(client: httpx.Client, request: str, task: str, choice: str | None) -> dict[str, Any]:
    """Post a vote; the new state."""
    posted = {"annotator": number_of(client), "request": request, "task": task, "choice": choice}
    answer = client.post("/api/vote", json=posted)
    assert answer.status_code == 200, answer.text
    return answer.json()


@dataclass
class Server:
    """A running arena and its log: in a thread of this process (`arena`), or in `process`."""

    address: str
    owner_link: str
    arena: Arena = field(kw_only=True, default=None)  # type: ignore[assignment]
    process: subprocess.Popen[str] = field(kw_only=True, default=None)  # type: ignore[assignment]
    links: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def visitor(self) -> httpx.Client:
        """A browser without a session."""
        return httpx.Client(base_url=self.address, timeout=60, verify=NO_TLS)

    @contextmanager
    def joined(self, name: str, invitation: str = "") -> Iterator[httpx.Client]:
        """A browser with the session of a new annotator."""
        with self.visitor() as client:
            answer = client.post("/api/join", json=joining(name, invitation))
            assert answer.status_code == 200, answer.text
            yield client

    @contextmanager
    def owner(self) -> Iterator[httpx.Client]:
        """A browser with the owner's session."""
        with self.visitor() as client:
            assert client.get(self.owner_link).status_code == 200
            yield client

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a table of the results."""
        with self.owner() as owner:
            return list(csv.DictReader(io.StringIO(owner.get(f"/results/{name}").text)))

    def stop(self, signal_number: int) -> int:
        """Send a signal to the process; its exit code."""
        self.process.send_signal(signal_number)
        return self.process.wait(60)


class LogLines(logging.Handler):
    """Append every message to a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def served(
    source: Path, database: Path, *options: Any, host: str | None = None, port: int = 0
) -> Iterator[Server]:
    """An arena opened with `options` (mode, number of items), served until the block ends."""
    arena = open_arena(database, [source], *options)
    listening = listen(host or "127.0.0.1", port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = Server(address, f"{address}/owner/{arena.signer.token('owner')}", arena=arena)
    loggers = [logging.getLogger(name) for name in ("directalign.web", "uvicorn.error")]
    handler = LogLines(server.log)
    for logger in loggers:
        logger.addHandler(handler)
    running = http_server(create_app(arena, host))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.005)
        yield server
    finally:
        running.should_exit = running.force_exit = True
        thread.join()
        arena.store.close()
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def running(source: Path, database: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """`directalign arena` in a process of its own, until the block ends."""
    words = ["arena", str(source), "--out", str(database), "--port", str(port), *options]
    with running_command(words) as server:
        yield server


@contextmanager
def running_command(words: Sequence[str]) -> Iterator[Server]:
    """A command that serves an arena, in a process of its own, until the block ends."""
    command = [sys.executable, "-m", "directalign", *words]
    process = forked.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    links = []
    for line in process.stdout:
        links.append(line.split()[-1])
        if line.startswith("results"):
            break
    assert links, process.stderr.read()
    address = "/".join(links[0].split("/")[:3])
    server = Server(address, links[-1], process=process, links=links[:-1])
    reader = threading.Thread(target=lambda: server.log.extend(process.stderr or ()))
    reader.start()
    try:
        yield server
    finally:
        process.kill()
        process.wait(30)
        reader.join(10)
        process.stdout.close()
