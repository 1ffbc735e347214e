"""Hostile requests are refused with a status and one clean line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from arena_runs import NO_TLS, Running, joining, running, write_comparison

from directalign.arena import security
from directalign.arena.security import Refused
from directalign.arena.server import allowed_hosts
from directalign.arena.session import normalized_name

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "'; DROP TABLE answers; --",
    "{{ 7*7 }} {% raw %} \u202e\u0000 ${7*7}",
]
TRAVERSALS = [
    "/static/../store.py",
    "/static/..%2fstore.py",
    "/static/%2e%2e/%2e%2e/store.py",
    "/image/../../etc/passwd",
    "/image/..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Open to a network, and so with an invitation."""
    folder = tmp_path_factory.mktemp("hostile")
    with running(
        write_comparison(folder / "source", HOSTILE), folder / "votes.sqlite", "--host", "0.0.0.0"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """On this machine only, without an invitation."""
    folder = tmp_path_factory.mktemp("local")
    with running(write_comparison(folder / "source", HOSTILE), folder / "votes.sqlite") as found:
        yield found


@pytest.fixture(scope="module")
def stranger(server: Running) -> httpx.Client:
    """A browser without a session, which keeps no cookies."""
    return httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30, verify=NO_TLS)


@pytest.fixture(scope="module")
def voter(server: Running, stranger: httpx.Client) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stranger.base_url, timeout=30, verify=NO_TLS) as client:
        invitation = server.links[0].rpartition("/")[2]
        assert client.post("/api/join", json=joining("Ann", invitation)).status_code == 200
        yield client


def logged(server: Running, words: str, lines: int = 1) -> list[str]:
    """Lines of the log with these words; waits for them to arrive."""
    for _ in range(200):
        found = [line for line in server.log if words in line]
        if len(found) >= lines:
            break
        time.sleep(0.05)
    return found


def test_without_the_invitation_nobody_comes_in(server: Running, stranger: httpx.Client):
    assert "/invitation/" in server.links[0]
    for path in (
        "/",
        "/invitation/0123456789abcdef0123456789abcdef",
        "/invitation/%00",
        "/invitation/ä",
    ):
        assert stranger.get(f"{path}").status_code == 403
    for invitation in ("", "0" * 32, "ä" * 32):
        assert stranger.post("/api/join", json=joining("Eve", invitation)).status_code == 403
    assert logged(server, "needs an invitation", 7)


@pytest.mark.parametrize(
    "link",
    [
        "1.00000000000000000000000000000000",
        "0.x",
        "999999999.00000000000000000000000000000000",
        "1",
        "٣.0",
        "a" * 5000,
        "..%2f",
        "1.%0d%0aSet-Cookie",
    ],
)
def test_a_forged_link_or_cookie_is_refused(
    server: Running, stranger: httpx.Client, voter: httpx.Client, link: str
):
    assert stranger.get(f"/me/{link}").status_code in (401, 404)
    cookies = {name: link.encode("ascii", "replace").decode() for name in dict(voter.cookies)}
    forged = stranger.get(
        "/api/state",
        headers={"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())},
    )
    assert forged.status_code == 401 and "Traceback" not in forged.text
    assert stranger.get(f"/owner/{link}").status_code in (401, 404)


def test_another_annotators_number_on_the_own_mark_is_refused(
    stranger: httpx.Client, voter: httpx.Client
):
    link = voter.get("/api/state").json()["link"]
    assert (
        stranger.get(f"/me/{int(link.split('.')[0]) + 1}.{link.split('.')[1]}").status_code == 401
    )


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_reaches_the_file_system(server: Running, voter: httpx.Client, path: str):
    with socket.create_connection(
        ("127.0.0.1", server.port)
    ) as raw:  # a client library would tidy the path up
        cookie = "; ".join(f"{name}={value}" for name, value in voter.cookies.items())
        raw.sendall(
            (
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n"
                "Connection: close\r\n\r\n"
            ).encode()
        )
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer and b"sqlite" not in answer


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "192.168.1.7",
        "",
        "localhost:80:80",
        "a b",
        "[::1",
        "evil.example@localhost",
    ],
)
def test_a_foreign_host_is_refused_where_no_invitation_is_needed(local: Running, host: str):
    """Else a page could join the arena of its visitor's machine by DNS rebinding."""
    with local.visitor() as client:
        assert client.get("/", headers={"Host": host}).status_code == 400
        for own in ("localhost", f"127.0.0.1:{local.port}", "[::1]:8000"):
            assert client.get("/", headers={"Host": own}).status_code == 200


def test_hosts_of_a_network():
    assert allowed_hosts("0.0.0.0") == ["*"]
    assert {"compare.example", "localhost", socket.gethostname()} <= {
        *allowed_hosts("compare.example")
    }
    assert "[fd00::1]" in allowed_hosts("fd00::1") and "127.0.0.2" in allowed_hosts("127.0.0.2")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({}, 415),
        ({"content-type": "application/json", "origin": "http://evil.example"}, 403),
        ({"content-type": "application/json", "origin": "null"}, 403),
        ({"content-type": "application/json", "sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "application/json", "sec-fetch-site": "same-site"}, 403),
    ],
)
def test_a_post_of_another_site_is_refused(
    voter: httpx.Client, headers: dict[str, str], status: int
):
    assert voter.post("/api/vote", content=b"{}", headers=headers).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 60000,
        b'{"annotator": 1, "request": "12345678", "task": "' + b"0" * 32 + b'", "choice": "left"}',
        b'{"annotator": 1, "request": "12345678", "task": 7, "choice": "left"}',
        b'{"annotator": 1, "request": "a\\nb forged line", "task": "'
        + b"0" * 32
        + b'", "choice": "left"}',
        b'{"annotator": 1, "request": "12345678", "task": "'
        + b"0" * 32
        + b'", "choice": "left", "owner": 2}',
        b'{"annotator": 1, "request": "12345678", "task": "../../etc/passwd", "choice": "left"}',
        b'{"annotator": 1, "request": "12345678", "task": "\\ud800", "choice": "left"}',
        b'{"annotator": 1, "request": ' + b"9" * 5000 + b', "task": "", "choice": null}',
        b'{"annotator": true, "request": "12345678", "task": "'
        + b"0" * 32
        + b'", "choice": "left"}',
        b'{"annotator": 1e999, "request": "12345678", "task": "'
        + b"0" * 32
        + b'", "choice": "left"}',
        b'{"annotator": NaN, "request": "12345678", "task": "'
        + b"0" * 32
        + b'", "choice": "left"}',
        b'{"a":' * 12000,
        b'{"__proto__": {"x": 1}, "\\n2026 forged": 1}',
    ],
)
def test_a_malformed_answer_is_refused(server: Running, voter: httpx.Client, body: bytes):
    before = voter.get("/api/state").json()
    answer = voter.post("/api/vote", content=body, headers={"content-type": "application/json"})
    assert (
        400 <= answer.status_code < 500
        and "Traceback" not in answer.text
        and len(answer.text) < 300
    )
    assert voter.post(
        "/api/rating", content=body, headers={"content-type": "application/json"}
    ).status_code in (400, 422)
    assert voter.get("/api/state").json() == before


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "x" * 10_000,
        "x" * 61,
        "a\u202eb",
        "a\x00b",
        "a\x1bb",
        "\u200b",
        "=cmd()",
        "@x",
        "a\ud800b",
    ],
)
def test_a_name_that_is_none_is_refused(server: Running, stranger: httpx.Client, name: str):
    posted = json.dumps(joining(name, server.links[0].rpartition("/")[2]))
    answer = stranger.post(
        "/api/join", content=posted, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422 and len(answer.text) < 300


def test_names_are_kept_as_people_write_them():
    assert [
        normalized_name(name)
        for name in ("  Ann   Lee ", "Zoë", "Łukasz 2", "美咲", "<b>x</b>"[1:])
    ] == ["Ann Lee", "Zoë", "Łukasz 2", "美咲", "b>x</b>"]
    with pytest.raises(Refused, match="letter or a digit"):
        normalized_name("<script>")


def test_a_large_body_is_refused_unread(server: Running, voter: httpx.Client):
    """By its announced length; a chunked one at the limit; 50 MB sent at once."""
    cookie = "; ".join(f"{name}={value}" for name, value in voter.cookies.items())
    head = f"POST /api/vote HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n"
    head += "Content-Type: application/json\r\n"
    for more in (
        f"Content-Length: {50 * 2**20}\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n11000\r\n" + "x" * 0x11000,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
            raw.sendall((head + more).encode())
            answer = b"".join(
                iter(lambda raw=raw: raw.recv(65536), b"")
            )  # ends: the connection is closed
        assert answer.startswith(b"HTTP/1.1 413")
    try:
        assert (
            voter.post(
                "/api/vote",
                content=b"x" * (50 * 2**20),
                headers={"content-type": "application/json"},
            ).status_code
            == 413
        )
    except httpx.TransportError as error:
        assert isinstance(
            error, httpx.ReadError | httpx.WriteError
        )  # the connection was closed under it
    assert logged(server, "refused 413", 3)
    assert (
        voter.get("/").status_code == 200
        and voter.request("GET", "/", content=b"x").status_code == 400
    )


def test_a_slow_body_times_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(security, "LINGER_SECONDS", 0.0)
    sent: list[dict] = []

    async def nothing(*_: object) -> None:
        raise AssertionError("the application was reached")

    async def never() -> dict:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/vote",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("::1", 1),
    }
    with caplog.at_level(logging.WARNING):
        asyncio.run(security.RequestFilter(nothing)(scope, never, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408 and "refused 408" in caplog.text


def test_every_answer_has_the_headers(local: Running, voter: httpx.Client):
    with local.visitor() as client:
        foreign = client.get("/", headers={"host": "evil.example"})
    answers = [
        voter.get("/"),
        voter.get("/api/state"),
        voter.get("/nope"),
        foreign,
        voter.delete("/"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 400, 405]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy
            and "unsafe" not in policy
            and "frame-ancestors 'none'" in policy
        )
        assert (
            answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers
        )
    assert "<script>" not in answers[0].text and "alert(1)" not in answers[0].text
    assert voter.get("/api/state").headers["content-type"] == "application/json"


def test_the_log_holds_one_clean_line_for_each_refusal(
    server: Running, stranger: httpx.Client, voter: httpx.Client
):
    secret = "1.deadbeefdeadbeefdeadbeefdeadbeef"
    stranger.get(f"/me/{secret}")
    stranger.get("/lines%0a12:00:00%20directalign.arena:%20all%20is%20well")
    assert (
        stranger.post(
            "/", headers={"Content-Type": "application/json", "Origin": "http://evil[31m"}
        ).status_code
        == 403
    )
    assert logged(server, "lines\\n12") and not any(
        line.startswith("12:00:00 directalign.arena: all is well") for line in server.log
    )
    assert not any("deadbeef" in line or "Traceback" in line for line in server.log)
    assert all(line.isascii() and line.rstrip("\n").isprintable() for line in server.log)
