"""The door of the server, in front of everything: what a request must be like before any code of ours reads it.

An ASGI layer that checks the Host (against DNS rebinding), the method, the Origin and content type of what is posted (against forged
requests), and reads a body only up to 64 kB and 10 s. Each refusal is one line in the log, in which nothing from the request stands unescaped.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("directalign.arena")

MOST_BYTES = 64 * 1024
MOST_SECONDS = 10.0
LINGER = 0.5
"""Seconds for which a connection stays after its body was refused, so that the sender can read why."""
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-robots-tag": "noindex",
}
"""On every answer that does not set its own."""


class Refused(Exception):
    """A request that is not served: the status, and why in one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def quoted(text: str, most: int = 80) -> str:
    """A text from outside as it may stand in a log: one line, ASCII, cut to a length."""
    return ascii(text if len(text) <= most else f"{text[:most]}...")


def log_refusal(scope: Scope, refusal: Refused) -> None:
    """One line: status, method, path without its secrets, address, reason."""
    client = (scope.get("client") or ("?",))[0]
    room = "/".join(scope["path"].split("/")[:2])  # what follows may be a token
    log.warning("refused %d %s %s from %s: %s", refusal.status, quoted(scope["method"], 10), quoted(room), client, refusal.reason)


class Guard:
    """The layer in front of an application.

    Args:
        names: hosts by which the server may be called, beside addresses in numbers.
    """

    def __init__(self, app: App, names: frozenset[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = _headers(scope)
            self._check(scope["method"], headers)
            body = await _body(receive, headers) if scope["method"] == "POST" else b""
        except Refused as refusal:
            log_refusal(scope, refusal)
            await _refuse(send, refusal)
            return
        await self.app(scope, _replayed(body, receive), _with_headers(send))

    def _check(self, method: str, headers: Mapping[str, str]) -> None:
        if not is_own_host(headers.get("host", ""), self.names):
            raise Refused(421, f"host {quoted(headers.get('host', ''))} is not this server")
        if method not in ("GET", "POST"):
            raise Refused(405, "method not known here")
        if method != "POST":
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                raise Refused(400, f"a {method} with a body")
            return
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "what is posted must be application/json")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if site != "same-origin" or (origin is not None and origin.partition("://")[2].lower() != headers["host"].lower()):
            raise Refused(403, f"posted from another site, {quoted(origin or site)}")


def is_own_host(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an address in numbers, which no foreign domain can pose as, or one of the server's names."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = (found[1] or found[2]).lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True


def _headers(scope: Scope) -> dict[str, str]:
    """Header by name; one that decides about trust may not come twice."""
    found: dict[str, str] = {}
    for raw_name, value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in found and name in ("host", "origin", "content-length", "content-type"):
            raise Refused(400, f"two headers {name}")
        found[name] = value.decode("latin-1")
    return found


async def _body(receive: Receive, headers: Mapping[str, str]) -> bytes:
    """The whole body, if it is small and comes soon; a larger one is refused by its announced length, or where it passes the limit."""
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise Refused(400, "content-length is no number")
    if int(length[:12]) > MOST_BYTES:
        raise Refused(413, f"a body of more than {MOST_BYTES} bytes")
    try:
        return await asyncio.wait_for(_collected(receive), MOST_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body took longer than {MOST_SECONDS:g} s") from None


async def _collected(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the connection ended inside the body")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            raise Refused(413, f"a body of more than {MOST_BYTES} bytes")
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body read before, then whatever the connection says."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return left.pop() if left else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in present]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return sent


async def _refuse(send: Send, refusal: Refused) -> None:
    """Say no and end the connection, whose unread rest is never read."""
    text = f"{refusal.reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode()), (b"connection", b"close")]
    await _with_headers(send)({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": True})
    await asyncio.sleep(LINGER if refusal.status in (408, 413) else 0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
