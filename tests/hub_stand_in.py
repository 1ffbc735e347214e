"""A Hugging Face Hub on this machine, as much of it as an upload meets: repositories, permissions,
the commit and LFS endpoints.

Speaks what huggingface_hub calls without xet (HF_HUB_DISABLE_XET=1): repos/create, repo info,
validate-yaml, preupload, the LFS batch with a plain PUT and its verification, and the commit in
ndjson. Whatever else is asked for is answered with 404 and kept in `unknown`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens of one user, `me`; any other token is not accepted."""
LFS_ENDINGS = (".safetensors", ".png")


@dataclass
class Repo:
    """`files` by path, as committed."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class HubStandIn:
    """The state behind the endpoints. `repos` by (type, owner/name); `objects` are LFS contents by
    their SHA-256, `verified` those confirmed."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """A running stand-in at `.url`."""
    state = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"state": state}))
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


class Handler(BaseHTTPRequestHandler):
    """One request; each endpoint is a method that takes what its pattern found in the path."""

    state: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route({r"/api/(model|dataset|space)s/([\w-]+/[\w.-]+)(?:/revision/\w+)?": self._info})

    def do_POST(self) -> None:
        self._route(
            {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": self._validate_yaml,
                r"/api/models/([\w-]+/[\w.-]+)/preupload/main": self._preupload,
                r"/([\w-]+/[\w.-]+)\.git/info/lfs/objects/batch": self._batch,
                r"/lfs/verify": self._verify,
                r"/api/models/([\w-]+/[\w.-]+)/commit/main": self._commit,
            }
        )

    def do_PUT(self) -> None:
        self._route({r"/lfs/(\w+)": self._store})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""

    def _route(self, endpoints: dict[str, Any]) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        for pattern, endpoint in endpoints.items():
            found = re.fullmatch(pattern, path)
            if found is not None:
                endpoint(*found.groups())
                return
        self.state.unknown.append(f"{self.command} {path}")
        self._answer(404, {"error": "not found"})

    def _answer(
        self, status: int, content: object = None, headers: dict[str, str] | None = None
    ) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _may_write(self, repo: str) -> bool:
        """Answers the refusal itself."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
            return False
        if token == READER or not repo.startswith("me/"):
            self._answer(
                403, {"error": "You don't have the rights to create a model under this namespace"}
            )
            return False
        return True

    # --- repositories
    # ---

    def _info(self, kind: str, repo: str) -> None:
        found = self.state.repos.get((kind, repo))
        if found is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        self._answer(
            200,
            {
                "id": repo,
                "private": found.private,
                "sha": "0" * 40,
                "tags": [],
                "siblings": [{"rfilename": name} for name in found.files],
            },
        )

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo, kind = f"{asked['organization'] or 'me'}/{asked['name']}", asked.get("type", "model")
        if not self._may_write(repo):
            return
        there = (kind, repo) in self.state.repos
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.state.repos.setdefault((kind, repo), Repo(private))
        self._answer(
            409 if there else 200,
            {
                "url": f"{self.state.url}/{repo}",
                **({"error": "You already created this model repo"} if there else {}),
            },
        )

    # --- upload
    # ---

    def _validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        metadata = yaml.safe_load(found[1]) if found else None
        wrong = (
            []
            if isinstance(metadata, dict) and isinstance(metadata.get("license"), str)
            else [{"message": "no metadata with a license"}]
        )
        self._answer(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def _preupload(self, repo: str) -> None:
        if not self._may_write(repo):
            return
        paths = [each["path"] for each in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_ENDINGS) else "regular" for path in paths}
        self._answer(
            200,
            {
                "files": [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False}
                    for path, mode in modes.items()
                ]
            },
        )

    def _batch(self, repo: str) -> None:
        if not self._may_write(repo):
            return
        objects = [
            {
                **each,
                "actions": {
                    "upload": {"href": f"{self.state.url}/lfs/{each['oid']}"},
                    "verify": {"href": f"{self.state.url}/lfs/verify"},
                },
            }
            for each in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.state.objects[oid] = self.body
        self._answer(200)

    def _verify(self) -> None:
        asked = json.loads(self.body)
        whole = len(self.state.objects.get(asked["oid"], b"")) == asked["size"]
        self.state.verified |= {asked["oid"]} if whole else set()
        self._answer(200 if whole else 404, {})

    def _commit(self, repo: str) -> None:
        if not self._may_write(repo):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = self.state.repos["model", repo].files
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            else:
                self.state.commits.append(value["summary"])
        self._answer(
            200,
            {
                "success": True,
                "commitUrl": f"{self.state.url}/{repo}/commit/{'0' * 40}",
                "commitOid": "0" * 40,
                "hookOutput": "",
            },
        )
