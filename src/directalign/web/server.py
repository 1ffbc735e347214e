"""What every server of the package needs: socket, hosts, static files, errors, uvicorn.

Without --host a server listens on this machine only.
"""

import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from ..errors import DirectAlignError
from .security import Refused, RequestFilter, log_refusal

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
COOKIE_SECONDS = 30 * 86400
LOCALHOST, ALL_INTERFACES = "127.0.0.1", ("0.0.0.0", "::")
ONLY_HERE = "links open on this machine only; for colleagues repeat the command with --host 0.0.0.0"
SHUTDOWN_SECONDS = 5
"""Time for requests under way when the server stops."""
MAX_CONNECTIONS = 2048

Refuse = Callable[[Request, Refused], Response]
"""Answer a request that is refused."""


class Posted(BaseModel):
    """Body of a POST request: known keys and exact types only."""

    model_config = ConfigDict(extra="forbid", strict=True)


def new_app() -> FastAPI:
    """An application without documentation pages."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)


def guarded(app: FastAPI, host: str | None) -> ASGIApp:
    """The application behind checks of requests, for a server that listens on `host`."""
    return RequestFilter(TrustedHostMiddleware(app, allowed_hosts(host), www_redirect=False))


def with_cookie(
    response: Response, cookie: str, value: str, samesite: Literal["strict", "lax"] = "strict"
) -> Response:
    """The response with a session cookie; with "lax", links of other sites open pages with it."""
    response.set_cookie(cookie, value, max_age=COOKIE_SECONDS, httponly=True, samesite=samesite)
    return response


def add_static(app: FastAPI, files: Iterable[Path]) -> None:
    """Serve those of the files that are of `MEDIA_TYPES` under /static/NAME."""
    static_files = [file for file in files if file.suffix in MEDIA_TYPES]
    contents = {file.name: (file.read_bytes(), MEDIA_TYPES[file.suffix]) for file in static_files}

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in contents:
            raise Refused(404, "no such file")
        body, media_type = contents[name]
        return Response(body, media_type=media_type, headers={"cache-control": "no-cache"})


def add_error_handlers(app: FastAPI, message: Callable[[str, str, int], Response]) -> Refuse:
    """Answer each refusal with one log line and one sentence, never a traceback.

    Args:
        message: a page of (title, text, status).
    """

    def refuse(request: Request, refusal: Refused) -> Response:
        log_refusal(request.scope, refusal)
        if "text/html" in request.headers.get("accept", ""):
            titles = {401: "Access denied", 403: "Access denied", 404: "Not found"}
            title = titles.get(refusal.status, "Request failed")
            return message(title, refusal.reason, refusal.status)
        return JSONResponse({"error": refusal.reason}, refusal.status)

    def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            reason = "no such page" if error.status_code == 404 else "invalid request"
            return refuse(request, Refused(error.status_code, reason))
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            reason = f"malformed: {first['type']} in {ascii(first['loc'][-1])[:40]}"
            return refuse(request, Refused(422, reason))
        assert isinstance(error, Refused)
        return refuse(request, error)

    for kind in (Refused, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)
    return refuse


def http_server(app: ASGIApp) -> uvicorn.Server:
    """A server of the application; nothing is logged but warnings."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        backlog=MAX_CONNECTIONS,
        limit_concurrency=MAX_CONNECTIONS,
    )
    return uvicorn.Server(config)


def is_public(host: str | None) -> bool:
    """Whether `host` is any address but this machine's own, so that strangers may reach it."""
    try:
        return host is not None and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def allowed_hosts(host: str | None) -> list[str]:
    """Host names that requests may use when the server listens on `host`."""
    names = ["localhost", LOCALHOST, "[::1]"]
    if host in ALL_INTERFACES:  # names unknown; DNS rebinding fails without a link or session
        return ["*"]
    if host is not None:
        names.append(f"[{host}]" if ":" in host else host)
    if is_public(host):
        own = socket.gethostname()
        names += [own, f"{own}.local", socket.getfqdn()]
    return names


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 takes a free one. Raises: DirectAlignError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        known = isinstance(error, socket.gaierror) or error.errno is None
        reason = error.strerror if known else os.strerror(error.errno or 0)
        raise DirectAlignError(
            f"--host {host} --port {port}: cannot listen there ({reason}); "
            "name another one, --port 0 takes a free one"
        ) from None


def address_of(host: str, port: int) -> str:
    """URL of the server; for all interfaces that of the address which other machines reach."""
    if host in ALL_INTERFACES:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # finds a route, sends nothing
                host = probe.getsockname()[0]
            except OSError:
                host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configure_logging() -> None:
    """Log refusals and errors to stderr, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    for name, level in (("directalign.web", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
