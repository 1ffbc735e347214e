"""A Hugging Face Hub on this machine, as much of it as a download meets: repository info, file
trees, and the files themselves.

Speaks what huggingface_hub asks without xet. A repository may be gated or private, and has one set
of files for each revision. Uploads have a stand-in of their own, `hub_stand_in`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

TOKEN = "hf_reader"
"""Opens gated and private repositories."""
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """`revisions`: files by path for each branch."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    private: bool = False


@dataclass
class DownloadHub:
    """The repositories by name, and what was fetched of them: paths of GET requests for files."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)

    def publish(self, name: str, folder: Path, revision: str = "main", **extra: bytes) -> Repo:
        """A folder as a repository, or as another revision of one; `extra` files are named with
        `__` for `/` and `_dot_` for dots."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        repo = self.repos.setdefault(name, Repo({}))
        repo.revisions[revision] = files | {
            key.replace("__", "/").replace("_dot_", "."): content for key, content in extra.items()
        }
        return repo


@contextmanager
def download_hub() -> Iterator[DownloadHub]:
    """A running stand-in at `.url`."""
    state = DownloadHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool = False) -> None:
    """What HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE say before huggingface_hub is imported, said to
    the one that is."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    state: DownloadHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""

    def _route(self) -> None:
        path = self.path.split("?")[0]
        for pattern, answer in (
            (rf"/api/models/{REPO}(?:/revision/(?P<revision>[\w.-]+))?", self._info),
            (rf"/api/models/{REPO}/tree/(?P<revision>[\w.-]+)", self._tree),
            (rf"/{REPO}/resolve/(?P<revision>[\w.-]+)/(?P<name>.+)", self._file),
        ):
            found = re.fullmatch(pattern, path)
            if found is not None:
                self._open(answer, **found.groupdict())
                return
        self._refuse(404, "EntryNotFound")

    def _open(self, answer, repo: str, revision: str | None, name: str | None = None) -> None:
        """Finds the revision, by branch or commit, or refuses."""
        found = self.state.repos.get(repo)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if found is None or (found.private and token != TOKEN):
            self._refuse(404, "RepoNotFound")
            return
        if found.gated and token != TOKEN and name is not None:
            self._refuse(401, "GatedRepo")
            return
        branch = next(
            (
                branch
                for branch in found.revisions
                if (revision or "main") in (branch, commit(branch))
            ),
            None,
        )
        if branch is None:
            self._refuse(404, "RevisionNotFound")
            return
        answer(repo, branch, found.revisions[branch], name)

    def _info(self, repo: str, branch: str, files: dict[str, bytes], _: str | None) -> None:
        self._json(
            {
                "id": repo,
                "sha": commit(branch),
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    def _tree(self, repo: str, branch: str, files: dict[str, bytes], _: str | None) -> None:
        self._json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                for name, content in files.items()
            ]
        )

    def _file(self, repo: str, branch: str, files: dict[str, bytes], name: str | None) -> None:
        content = files.get(str(name))
        if content is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit(branch)})
            return
        if self.command == "GET":
            self.state.fetched.append(str(name))
        self._answer(
            200,
            content,
            {
                "ETag": f'"{etag(content)}"',
                "X-Repo-Commit": commit(branch),
                "Content-Type": "application/octet-stream",
            },
        )

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def commit(branch: str) -> str:
    """The commit that a branch stands at."""
    return hashlib.sha1(branch.encode()).hexdigest()


def etag(content: bytes) -> str:
    """The name of a file's contents, as git gives it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
