"""Checks on every HTTP request, of the arena and of the page of runs.

`RequestFilter` is an ASGI layer that checks method, Origin and content type (against forged
requests), limits bodies to 64 kB and 10 s, and adds security headers. Slow headers are not limited:
use a reverse proxy or a tunnel beyond a LAN.
"""

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("directalign.web")

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0
LINGER_SECONDS = 0.5
"""A connection stays open this long after its body was refused, so that the client reads why."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-robots-tag": "noindex",
}
"""Headers of every response that does not set its own."""


class Refused(Exception):
    """A request that is not served: the HTTP status and the reason in one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def quoted(text: str, most: int = 80) -> str:
    """Untrusted text for a log: one line, ASCII, cut to a length."""
    return ascii(text if len(text) <= most else f"{text[:most]}...")


def log_refusal(scope: Scope, refusal: Refused) -> None:
    """Log one line: status, method, first part of the path (the rest may be a token), reason."""
    client = (scope.get("client") or ("?",))[0]
    called = f"{quoted(scope['method'], 10)} {quoted('/'.join(scope['path'].split('/')[:2]))}"
    log.warning("refused %d %s from %s: %s", refusal.status, called, client, refusal.reason)


class RequestFilter:
    """ASGI layer in front of the application: refuses unsafe requests, adds security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _with_headers(send)
        try:
            headers = Headers(scope=scope)
            _check(scope["method"], headers)
            if scope["method"] == "POST":
                receive = _replayed(await _body(scope, receive), receive)
        except Refused as refusal:
            log_refusal(scope, refusal)
            await _refuse(send, refusal)
        else:
            await self.app(scope, receive, send)


def _check(method: str, headers: Headers) -> None:
    for name in ("host", "origin", "content-length", "content-type"):  # they decide about trust
        if len(headers.getlist(name)) > 1:
            raise Refused(400, f"duplicate header {name}")
    if method not in ("GET", "POST"):
        raise Refused(405, "method not allowed")
    if method == "GET":
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            raise Refused(400, "GET with a body")
        return
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refused(415, "the content type must be application/json")
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    host = headers.get("host", "").lower()
    if site != "same-origin" or (origin is not None and origin.partition("://")[2].lower() != host):
        raise Refused(403, f"posted from another site, {quoted(origin or site)}")


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body. Raises: Refused if it is larger than 64 kB or takes longer than 10 s."""
    request, too_large = Request(scope, receive), f"the body is larger than {MAX_BODY_BYTES} bytes"
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise Refused(400, "content-length is not a number")
    if int(length[:12]) > MAX_BODY_BYTES:
        raise Refused(413, too_large)

    async def collect() -> bytes:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise Refused(413, too_large)
        return body

    try:
        return await asyncio.wait_for(collect(), BODY_SECONDS)
    except ClientDisconnect:
        raise Refused(400, "the connection ended inside the body") from None
    except asyncio.TimeoutError:
        raise Refused(408, f"the body took longer than {BODY_SECONDS:g} s") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return the body that was read already, then further messages of the connection."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return left.pop() if left else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                found.setdefault(name, value)
        await send(message)

    return sent


async def _refuse(send: Send, refusal: Refused) -> None:
    """Send the reason and close the connection without reading the rest of the request."""
    text = f"{refusal.reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(text)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": True})
    await asyncio.sleep(LINGER_SECONDS if refusal.status in (408, 413) else 0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
