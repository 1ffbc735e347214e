"""A Hugging Face Hub on this machine: repositories, permissions, downloads, and uploads with LFS.

Speaks what huggingface_hub calls without xet (HF_HUB_DISABLE_XET=1). Downloads: repository info,
file trees, files of a branch or commit. Uploads: repos/create, validate-yaml, preupload, the LFS
batch with a plain PUT and its verification, and the commit in ndjson. Any other request is answered
with 404.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import constants

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens of one user, `me`; both open gated and private repositories. No other is accepted."""
LFS_ENDINGS = (".safetensors", ".png")
REPO = r"([\w.-]+/[\w.-]+)"
MAIN = "main"


@dataclass
class Repo:
    """`revisions`: files by path for each branch."""

    kind: str = "model"
    private: bool = False
    gated: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=lambda: {MAIN: {}})

    @property
    def files(self) -> dict[str, bytes]:
        return self.revisions[MAIN]


@dataclass
class Hub:
    """Repositories by name, LFS contents by SHA-256, and what was asked for.

    `fetched`: paths of files that were downloaded. `commits`: summaries of uploads.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def publish(self, name: str, folder: Path, revision: str = MAIN, **extra: bytes) -> Repo:
        """Add a folder as a repository or as another revision of one.

        Names of `extra` files have `__` for `/` and `_dot_` for dots.
        """
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        more = {key.replace("__", "/").replace("_dot_", "."): extra[key] for key in extra}
        repo = self.repos.setdefault(name, Repo(revisions={}))
        repo.revisions[revision] = files | more
        return repo


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A running stand-in at `.url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool = False) -> None:
    """Set what huggingface_hub read from HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE at its import."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def commit(branch: str) -> str:
    """The commit that a branch stands at."""
    return hashlib.sha1(branch.encode()).hexdigest()


def etag(content: bytes) -> str:
    """The name of a file's contents, as git gives it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request; each endpoint is a method that takes what its pattern found in the path."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route(
            {
                rf"/api/(model|dataset|space)s/{REPO}(?:/revision/([\w.-]+))?": self._info,
                rf"/api/models/{REPO}/tree/([\w.-]+)": self._tree,
                rf"/{REPO}/resolve/([\w.-]+)/(.+)": self._file,
            }
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._route(
            {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": self._validate_yaml,
                rf"/api/models/{REPO}/preupload/main": self._preupload,
                rf"/{REPO}\.git/info/lfs/objects/batch": self._batch,
                r"/lfs/verify": self._verify,
                rf"/api/models/{REPO}/commit/main": self._commit,
            }
        )

    def do_PUT(self) -> None:
        self._route({r"/lfs/(\w+)": self._store})

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _route(self, endpoints: dict[str, Any]) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        path = unquote(self.path.split("?")[0])
        for pattern, endpoint in endpoints.items():
            found = re.fullmatch(pattern, path)
            if found is not None:
                endpoint(*found.groups())
                return
        self.hub.unknown.append(f"{self.command} {path}")
        self._refuse(404, "EntryNotFound")

    def _answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "octet-stream" if isinstance(content, bytes) else "json"
        self.send_response(status)
        for name, value in {"Content-Type": f"application/{kind}", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, **headers: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, **headers)

    # --- downloads ---

    def _branch(self, repo: str, revision: str | None, kind: str = "model") -> str | None:
        """The branch of a revision, a branch or a commit; None if it has been refused."""
        found, known = self.hub.repos.get(repo), self.token in (WRITER, READER)
        if found is None or found.kind != kind or (found.private and not known):
            self._refuse(404, "RepoNotFound")
            return None
        for branch in found.revisions:
            if (revision or MAIN) in (branch, commit(branch)):
                return branch
        self._refuse(404, "RevisionNotFound")
        return None

    def _info(self, kind: str, repo: str, revision: str | None) -> None:
        branch = self._branch(repo, revision, kind)
        if branch is not None:
            found = self.hub.repos[repo]
            names = [{"rfilename": name} for name in found.revisions[branch]]
            about = {"id": repo, "sha": commit(branch), "private": found.private, "tags": []}
            self._answer(200, {**about, "siblings": names})

    def _tree(self, repo: str, revision: str) -> None:
        branch = self._branch(repo, revision)
        if branch is not None:
            files = self.hub.repos[repo].revisions[branch].items()
            sizes = [{"path": name, "size": len(each), "oid": etag(each)} for name, each in files]
            self._answer(200, [{"type": "file", **each} for each in sizes])

    def _file(self, repo: str, revision: str, name: str) -> None:
        branch = self._branch(repo, revision)
        if branch is None:
            return
        commits = {"X_Repo_Commit": commit(branch)}
        content = self.hub.repos[repo].revisions[branch].get(name)
        if self.hub.repos[repo].gated and self.token not in (WRITER, READER):
            self._refuse(401, "GatedRepo")
        elif content is None:
            self._refuse(404, "EntryNotFound", **commits)
        else:
            self.hub.fetched += [name] if self.command == "GET" else []
            self._answer(200, content, ETag=f'"{etag(content)}"', **commits)

    # --- uploads ---

    def _may_write(self, repo: str) -> bool:
        """Answers the refusal itself."""
        if self.token not in (WRITER, READER):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif self.token == READER or not repo.startswith("me/"):
            self._answer(403, {"error": "You don't have the rights to create a model here"})
        else:
            return True
        return False

    def _create(self) -> None:
        given = json.loads(self.body)
        repo, kind = f"{given['organization'] or 'me'}/{given['name']}", given.get("type", "model")
        if not self._may_write(repo):
            return
        there = repo in self.hub.repos and self.hub.repos[repo].kind == kind
        private = given.get("private", False) or given.get("visibility") == "private"
        self.hub.repos.setdefault(repo, Repo(kind, private))
        error = {"error": "You already created this model repo"} if there else {}
        self._answer(409 if there else 200, {"url": f"{self.hub.url}/{repo}", **error})

    def _validate_yaml(self) -> None:
        found = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        metadata = yaml.safe_load(found[1]) if found else None
        licensed = isinstance(metadata, dict) and isinstance(metadata.get("license"), str)
        errors = [] if licensed else [{"message": "no metadata with a license"}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, repo: str) -> None:
        if self._may_write(repo):
            paths = [each["path"] for each in json.loads(self.body)["files"]]
            modes = {path: "lfs" if path.endswith(LFS_ENDINGS) else "regular" for path in paths}
            files = [{"path": path, "uploadMode": mode} for path, mode in modes.items()]
            self._answer(200, {"files": [{**each, "shouldIgnore": False} for each in files]})

    def _batch(self, repo: str) -> None:
        if self._may_write(repo):
            lfs, objects = f"{self.hub.url}/lfs", json.loads(self.body)["objects"]
            for each in objects:
                hrefs = {"upload": f"{lfs}/{each['oid']}", "verify": f"{lfs}/verify"}
                each["actions"] = {name: {"href": href} for name, href in hrefs.items()}
            self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self._answer(200)

    def _verify(self) -> None:
        given = json.loads(self.body)
        whole = len(self.hub.objects.get(given["oid"], b"")) == given["size"]
        self.hub.verified |= {given["oid"]} if whole else set()
        self._answer(200 if whole else 404, {})

    def _commit(self, repo: str) -> None:
        if not self._may_write(repo):
            return
        files = self.hub.repos[repo].files
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                self.hub.commits.append(value["summary"])
        about = {"commitUrl": f"{self.hub.url}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40}
        self._answer(200, {"success": True, "hookOutput": "", **about})
