"""Small sources for an arena, and an arena as a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image, PngImagePlugin

SECRETS = ("SECRETMODEL", "SECRETFILE", "SECRETTEXT")
"""Parts of names, files and labels of a source that no annotator may receive."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Made once: a browser that never needs it would take longer to make its own than to vote."""


def write_comparison(
    folder: Path,
    prompts: Sequence[str],
    models: Sequence[str] = ("SECRETMODEL-a", "SECRETMODEL-b"),
    size: int = 24,
) -> Path:
    """A comparison folder; every image has its own colour, and a text chunk with the model."""
    known = [
        {"key": key, "label": f"Label of {key}", "source": key, "kind": "images"} for key in models
    ]
    rows = []
    for number, key in enumerate(models):
        (folder / "images" / key).mkdir(parents=True, exist_ok=True)
        for index, prompt in enumerate(prompts):
            name = f"images/{key}/SECRETFILE-{index:05d}.png"
            note = PngImagePlugin.PngInfo()
            note.add_text("model", f"SECRETTEXT {key}")
            Image.new("RGB", (size, size), (10 + 40 * number, 7 * index % 256, 90)).save(
                folder / name, pnginfo=note
            )
            rows.append(
                {
                    "model": key,
                    "index": index,
                    "prompt": prompt,
                    "seed": 10000 + index,
                    "file": name,
                    "group": None,
                    "numbers": {},
                }
            )
    (folder / "comparison.json").write_text(
        json.dumps({"format": 1, "models": known}), encoding="utf-8"
    )
    write_rows(folder / "results.jsonl", rows)
    return folder


def write_rows(file: Path, rows: Sequence[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def joining(name: str, invitation: str = "") -> dict[str, str]:
    """What a browser posts to join."""
    return {"request": secrets.token_hex(16), "name": name, "invitation": invitation}


def number_of(client: httpx.Client | httpx.AsyncClient) -> int:
    """The annotator whose session a browser has."""
    return next(
        int(value.split(".")[0]) for name, value in client.cookies.items() if "owner" not in name
    )


@dataclass
class Running:
    """A server that was started, its links and what it logs."""

    process: subprocess.Popen[str]
    links: list[str]
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return "/".join(self.links[0].split("/")[:3])

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def visitor(self) -> httpx.Client:
        """A browser without a session."""
        return httpx.Client(base_url=self.address, timeout=60, verify=NO_TLS)

    @contextmanager
    def joined(self, name: str) -> Iterator[httpx.Client]:
        """A browser with the session of a new annotator."""
        with self.visitor() as client:
            answer = client.post("/api/join", json=joining(name))
            assert answer.status_code == 200, answer.text
            yield client

    @contextmanager
    def owner(self) -> Iterator[httpx.Client]:
        """A browser with the owner's session."""
        with self.visitor() as client:
            assert client.get(self.links[-1]).status_code == 200
            yield client

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def running(source: Path, database: Path, *options: str, port: int = 0) -> Iterator[Running]:
    """`directalign arena`, until the block ends."""
    command = [
        sys.executable,
        "-m",
        "directalign",
        "arena",
        str(source),
        "--out",
        str(database),
        "--port",
        str(port),
        *options,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    links = []
    for line in process.stdout:
        links.append(line.split()[-1])
        if line.startswith("results"):
            break
    assert links, process.stderr.read()
    server = Running(process, links)
    reader = threading.Thread(target=lambda: server.log.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        yield server
    finally:
        process.kill()
        process.wait(30)
        reader.join(10)
        process.stdout.close()
