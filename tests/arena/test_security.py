"""Hostile requests are refused with a status and one clean line in the log."""

import asyncio
import json
import logging
import socket
import time

import httpx
import pytest
from arena_servers import NO_TLS, Server, joining, served, write_comparison

from directalign.arena.session import normalized_name
from directalign.web import security
from directalign.web.security import Refused
from directalign.web.server import allowed_hosts

JSON = {"content-type": "application/json"}
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "'; DROP TABLE answers; --",
    "{{ 7*7 }} {% raw %} \u202e\u0000 ${7*7}",
]


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Open to a network, and so with an invitation."""
    folder = tmp_path_factory.mktemp("hostile")
    source = write_comparison(folder / "source", HOSTILE)
    with served(source, folder / "votes.sqlite", host="0.0.0.0") as found:
        yield found


@pytest.fixture(scope="module")
def invitation(public):
    return public.arena.signer.token("invitation")


@pytest.fixture(scope="module")
def stranger(public):
    """A browser without a session, which keeps no cookies."""
    return httpx.Client(base_url=public.address, timeout=30, verify=NO_TLS)


@pytest.fixture(scope="module")
def voter(public, invitation):
    with public.joined("Ann", invitation) as client:
        yield client


def logged(server: Server, words: str, lines: int = 1) -> list[str]:
    """Lines of the log with these words; waits for them to arrive."""
    for _ in range(200):
        found = [line for line in server.log if words in line]
        if len(found) >= lines:
            break
        time.sleep(0.05)
    return found


def raw_answer(server: Server, request: str) -> bytes:
    """The response to a request that a client library would tidy up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(request.encode())
        return b"".join(iter(lambda: raw.recv(65536), b""))  # ends with the connection


def cookie_of(client: httpx.Client) -> str:
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


def test_joining_a_public_arena_needs_the_invitation(public, stranger):
    forged = ("0123456789abcdef0123456789abcdef", "%00", "ä")
    for path in ("/", *(f"/invitation/{token}" for token in forged)):
        assert stranger.get(path).status_code == 403
    for token in ("", "0" * 32, "ä" * 32):
        assert stranger.post("/api/join", json=joining("Eve", token)).status_code == 403
    assert logged(public, "needs an invitation", 7)


def test_forged_links_and_cookies_are_refused(stranger, voter):
    zeros = "0" * 32
    links = [f"1.{zeros}", "0.x", f"999999999.{zeros}", "1", "٣.0", "a" * 5000, "..%2f"]
    for link in (*links, "1.%0d%0aSet-Cookie"):
        assert stranger.get(f"/me/{link}").status_code in (401, 404)
        assert stranger.get(f"/owner/{link}").status_code in (401, 404)
        value = link.encode("ascii", "replace").decode()
        cookie = "; ".join(f"{name}={value}" for name in dict(voter.cookies))
        forged = stranger.get("/api/state", headers={"cookie": cookie})
        assert forged.status_code == 401 and "Traceback" not in forged.text
    number, _, token = voter.get("/api/state").json()["link"].partition(".")
    assert stranger.get(f"/me/{int(number) + 1}.{token}").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/static/../store.py",
        "/static/%2e%2e/%2e%2e/store.py",
        "/image/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
    ],
)
def test_no_path_reaches_the_file_system(public, voter, path):
    head = f"Host: localhost\r\nCookie: {cookie_of(voter)}\r\nConnection: close\r\n\r\n"
    answer = raw_answer(public, f"GET {path} HTTP/1.1\r\n{head}")
    assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer and b"sqlite" not in answer


def test_foreign_hosts_are_refused_without_an_invitation(server):
    """Else a page could join the arena of its visitor's machine by DNS rebinding."""
    foreign = ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "192.168.1.7", ""]
    foreign += ["localhost:80:80", "a b", "[::1", "evil.example@localhost"]
    own = ["localhost", f"127.0.0.1:{server.port}", "[::1]:8000"]
    with server.visitor() as client:
        for hosts, status in ((foreign, 400), (own, 200)):
            for host in hosts:
                assert client.get("/", headers={"Host": host}).status_code == status, host
    assert allowed_hosts("0.0.0.0") == ["*"]
    named = allowed_hosts("compare.example")
    assert {"compare.example", "localhost", socket.gethostname()} <= {*named}
    assert "[fd00::1]" in allowed_hosts("fd00::1") and "127.0.0.2" in allowed_hosts("127.0.0.2")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({}, 415),
        (JSON | {"origin": "http://evil.example"}, 403),
        (JSON | {"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_a_post_of_another_site_is_refused(voter, headers, status):
    assert voter.post("/api/vote", content=b"{}", headers=headers).status_code == status


def test_malformed_answers_are_refused(public, voter):
    zeros = '"' + "0" * 32 + '"'
    answer = '{"annotator": %s, "request": %s, "task": %s, "choice": "left"%s}'
    answers = [
        ("1", '"12345678"', zeros, ""),
        ("1", '"a\\nb forged line"', zeros, ""),
        ("1", '"12345678"', zeros, ', "owner": 2'),
        ("1", '"12345678"', '"../../etc/passwd"', ""),
        ("1", '"12345678"', '"\\ud800"', ""),
        ("1", "9" * 5000, '""', ""),
        ("true", '"12345678"', zeros, ""),
        ("1e999", '"12345678"', zeros, ""),
        ("NaN", '"12345678"', zeros, ""),
    ]
    bodies = [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 60000, b'{"a":' * 12000]
    bodies += [b'{"__proto__": {"x": 1}, "\\n2026 forged": 1}']
    bodies += [(answer % parts).encode() for parts in answers]
    before = voter.get("/api/state").json()
    for body in bodies:
        refused = voter.post("/api/vote", content=body, headers=JSON)
        assert 400 <= refused.status_code < 500, body
        assert "Traceback" not in refused.text and len(refused.text) < 300
        refused = voter.post("/api/rating", content=body, headers=JSON)
        assert refused.status_code in (400, 422)
    assert voter.get("/api/state").json() == before


def test_names(stranger, invitation):
    wrong = ["", "   ", "x" * 10_000, "x" * 61, "a\u202eb", "a\x00b", "a\x1bb", "\u200b"]
    for name in (*wrong, "=cmd()", "@x", "a\ud800b"):
        posted = json.dumps(joining(name, invitation))
        answer = stranger.post("/api/join", content=posted, headers=JSON)
        assert answer.status_code == 422 and len(answer.text) < 300
    names = {"  Ann   Lee ": "Ann Lee", "Zoë": "Zoë", "Łukasz 2": "Łukasz 2", "美咲": "美咲"}
    for name, normalized in (names | {"b>x</b>": "b>x</b>"}).items():
        assert normalized_name(name) == normalized
    with pytest.raises(Refused, match="letter or a digit"):
        normalized_name("<script>")


def test_a_large_body_is_refused_unread(public, voter):
    """By its announced length; a chunked one at the limit; 50 MB sent at once."""
    head = f"POST /api/vote HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie_of(voter)}\r\n"
    head += "Content-Type: application/json\r\n"
    announced = f"Content-Length: {50 * 2**20}\r\n\r\n"
    chunked = "Transfer-Encoding: chunked\r\n\r\n11000\r\n" + "x" * 0x11000
    for rest in (announced, chunked):
        assert raw_answer(public, head + rest).startswith(b"HTTP/1.1 413")
    try:
        answer = voter.post("/api/vote", content=b"x" * (50 * 2**20), headers=JSON)
        assert answer.status_code == 413
    except httpx.TransportError as error:  # the server closed the connection during the body
        assert isinstance(error, httpx.ReadError | httpx.WriteError)
    assert logged(public, "refused 413", 3)
    assert voter.get("/").status_code == 200
    assert voter.request("GET", "/", content=b"x").status_code == 400


def test_a_slow_body_times_out(monkeypatch, caplog):
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(security, "LINGER_SECONDS", 0.0)
    sent: list[dict] = []

    async def application(*_: object) -> None:
        raise AssertionError("the application was reached")

    async def receive() -> dict:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/vote", "headers": headers}
    with caplog.at_level(logging.WARNING):
        filtered = security.RequestFilter(application)  # type: ignore[arg-type]
        asyncio.run(filtered(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408 and "refused 408" in caplog.text


def test_every_answer_has_the_headers(server, voter):
    with server.visitor() as client:
        foreign = client.get("/", headers={"host": "evil.example"})
    answers = [voter.get(path) for path in ("/", "/api/state", "/nope")]
    answers += [foreign, voter.delete("/")]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 400, 405]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "server" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in answers[0].text and "alert(1)" not in answers[0].text
    assert answers[1].headers["content-type"] == "application/json"


def test_the_log_has_one_clean_line_per_refusal(public, stranger, voter):
    stranger.get("/me/1.deadbeefdeadbeefdeadbeefdeadbeef")
    stranger.get("/lines%0a12:00:00%20directalign.arena:%20all%20is%20well")
    forged = stranger.post("/", headers=JSON | {"Origin": "http://evil[31m"})
    assert forged.status_code == 403
    assert logged(public, "lines\\n12")
    for line in public.log:
        assert "deadbeef" not in line and "Traceback" not in line
        assert line.isascii() and line.isprintable()
