"""The arena over HTTP: pages, JSON API and images by token, as a FastAPI app on uvicorn.

Annotators are known by a cookie that their personal link sets, the owner by another one. Only they
see images, and only the owner the results. No request path becomes a file path: pages, scripts and
images are looked up in dictionaries made at the start. Without --host the server listens on this
machine only; with it, joining needs the invitation link.
"""

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from ..io.text import isolated
from .records import ArenaError, Axis, Level
from .results import PAGES, TABLES, TEMPLATES, render_store
from .security import Refused, RequestFilter, log, log_refusal, quoted
from .session import Arena
from .store import Side

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
COOKIE_SECONDS = 30 * 86400
RESULTS_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Content policy of the result page, which has inline style and no script."""
LOCALHOST, ALL_INTERFACES = "127.0.0.1", ("0.0.0.0", "::")
SHUTDOWN_SECONDS = 5
"""Time for requests under way when the server stops."""
MAX_CONNECTIONS = 2048

Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{8,64}$")]


class Posted(BaseModel):
    """Body of a POST request: known keys and exact types only."""

    model_config = ConfigDict(extra="forbid", strict=True)


class JoinPosted(Posted):
    """`request` is random and the same when the browser repeats a request. `is_other_person`: not
    the one whose session the browser has."""

    request: Token
    name: Annotated[str, StringConstraints(max_length=1000)]
    is_other_person: bool = False
    invitation: Annotated[str, StringConstraints(max_length=100)] = ""


class AnswerPosted(Posted):
    """`annotator` is the number in the personal link; `request` is as in `JoinPosted`."""

    annotator: int
    request: RequestId
    task: Token


class VotePosted(AnswerPosted):
    """The better side; None takes the vote back."""

    choice: Side | None


class RatingPosted(AnswerPosted):
    """Level of an image on an axis; None takes it back."""

    image: Token
    axis: Axis
    level: Level | None


def with_cookie(response: Response, cookie: str, value: str) -> Response:
    """The response with a session cookie."""
    response.set_cookie(cookie, value, max_age=COOKIE_SECONDS, httponly=True, samesite="strict")
    return response


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template with escaping."""
    return HTMLResponse(PAGES.get_template(template).render(**context), status)


class Auth:
    """Access by cookies and links."""

    def __init__(self, arena: Arena, host: str | None) -> None:
        self.arena = arena
        self.needs_invitation = needs_invitation(host)
        suffix = arena.signer.token("cookie")[:8]  # arenas on other ports share the cookies
        self.annotator_cookie, self.owner_cookie = f"arena_{suffix}", f"arena_owner_{suffix}"

    def annotator(self, request: Request) -> int:
        """Annotator of the session. Raises: Refused."""
        return self.arena.annotator(request.cookies.get(self.annotator_cookie, ""))

    def session(self, request: Request) -> int | None:
        """Annotator of the session, None without a valid one."""
        try:
            return self.annotator(request)
        except Refused:
            return None

    def author(self, request: Request, posted: AnswerPosted) -> int:
        """Annotator of an answer. Raises: Refused if the session is of someone else, as when two
        people open their links in one browser."""
        if self.annotator(request) != posted.annotator:
            reason = "this browser has another annotator's session now; open your personal link"
            raise Refused(401, reason)
        return posted.annotator

    def is_owner(self, request: Request) -> bool:
        """Whether the request has the owner's cookie."""
        return self.arena.signer.verifies("owner", request.cookies.get(self.owner_cookie, ""))

    def require_owner(self, request: Request) -> None:
        """Raises: Refused without the owner's cookie."""
        if not self.is_owner(request):
            reason = "the results are for the owner; open the owner link printed by the command"
            raise Refused(403, reason)

    def require_invitation(self, token: str) -> None:
        """Raises: Refused if joining is closed or needs another token."""
        if self.arena.invited is not None:
            raise Refused(403, "this arena is closed; open the personal link that you were given")
        if self.needs_invitation and not self.arena.signer.verifies("invitation", token):
            raise Refused(403, "this arena needs an invitation; open the link that you were sent")


def create_app(arena: Arena, host: str | None) -> ASGIApp:
    """The application of a server that listens on `host` (None: this machine)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    auth = Auth(arena, host)
    for add in (_add_pages, _add_files, _add_api, _add_results):
        add(app, arena, auth)
    _add_error_handlers(app)
    return RequestFilter(TrustedHostMiddleware(app, allowed_hosts(host), www_redirect=False))


def _add_pages(app: FastAPI, arena: Arena, auth: Auth) -> None:
    def start(invitation: str = "", name: str = "", is_other_person: bool = False) -> HTMLResponse:
        known = {"invitation": invitation, "name": name, "is_other_person": is_other_person}
        may_join = arena.invited is None and (invitation or not auth.needs_invitation)
        return page("start.html.j2", mode=arena.mode, may_join=may_join, **known)

    @app.get("/")
    def home(request: Request) -> Response:
        if auth.annotator_cookie in request.cookies:
            auth.annotator(request)
            return page(f"{arena.mode}.html.j2")
        auth.require_invitation("")
        return start()

    @app.get("/invitation/{token}")
    def invited(token: str, request: Request) -> Response:
        auth.require_invitation(token)
        session = auth.session(request)
        return start(token, "" if session is None else arena.names[session])

    @app.get("/another")
    def another_person(invitation: str = "") -> Response:
        auth.require_invitation(invitation)
        return start(invitation, is_other_person=True)

    @app.get("/me/{link}")
    def personal_link(link: str) -> Response:
        name = arena.names[arena.annotator(link)]
        return with_cookie(start(name=name), auth.annotator_cookie, link)


def _add_files(app: FastAPI, arena: Arena, auth: Auth) -> None:
    static_files = [file for file in TEMPLATES.iterdir() if file.suffix in MEDIA_TYPES]
    contents = {file.name: (file.read_bytes(), MEDIA_TYPES[file.suffix]) for file in static_files}

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in contents:
            raise Refused(404, "no such file")
        body, media_type = contents[name]
        return Response(body, media_type=media_type, headers={"cache-control": "no-cache"})

    @app.get("/image/{token}")
    def image(token: str, request: Request) -> Response:
        if not auth.is_owner(request):
            auth.annotator(request)
        try:
            content = arena.image(token)
        except ArenaError as error:  # the message names the file, and so the model
            log.error("%s", quoted(str(error), 500))
            raise Refused(503, "this image is not available; the server's log says why") from None
        if content is None:
            raise Refused(404, "no such image")
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return Response(content, media_type="image/png", headers=headers)


def _add_api(app: FastAPI, arena: Arena, auth: Auth) -> None:
    @app.post("/api/join")
    def join(posted: JoinPosted, request: Request) -> Response:
        auth.require_invitation(posted.invitation)
        session = None if posted.is_other_person else auth.session(request)
        link = arena.signer.link(arena.join(posted.name, posted.request, session))
        return with_cookie(JSONResponse({"link": link}), auth.annotator_cookie, link)

    @app.get("/api/session")
    def session(request: Request) -> Response:
        number = auth.session(request)
        return JSONResponse({"name": None if number is None else arena.names[number]})

    @app.get("/api/state")
    def state(request: Request) -> Response:
        return JSONResponse(arena.state(auth.annotator(request)))

    @app.post("/api/vote")
    def vote(posted: VotePosted, request: Request) -> Response:
        annotator = auth.author(request, posted)
        return JSONResponse(arena.vote(annotator, posted.request, posted.task, posted.choice))

    @app.post("/api/rating")
    def rating(posted: RatingPosted, request: Request) -> Response:
        annotator = auth.author(request, posted)
        question = posted.task, posted.image, posted.axis, posted.level
        return JSONResponse(arena.rate(annotator, posted.request, *question))


def _add_results(app: FastAPI, arena: Arena, auth: Auth) -> None:
    @app.get("/owner/{token}")
    def owner(token: str) -> Response:
        if not arena.signer.verifies("owner", token):
            raise Refused(401, "this is not the owner link")
        text = "You can now see the results."
        welcome = page("message.html.j2", title="Welcome back", text=text, link="/results")
        return with_cookie(welcome, auth.owner_cookie, token)

    @app.get("/results")
    def results(request: Request) -> Response:
        auth.require_owner(request)
        headers = {"content-security-policy": RESULTS_POLICY}
        return HTMLResponse(render_store(arena.store, "/results/"), headers=headers)

    @app.get("/results/{name}")
    def table(name: str, request: Request) -> Response:
        auth.require_owner(request)
        if name not in TABLES:
            raise Refused(404, "no such table")
        file = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
        headers = {"content-disposition": f'attachment; filename="{file}"'}
        content = TABLES[name][1](arena.store).encode()
        return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


def _add_error_handlers(app: FastAPI) -> None:
    """Answer each refusal with one log line and one sentence, never a traceback."""

    def refuse(request: Request, refusal: Refused) -> Response:
        log_refusal(request.scope, refusal)
        if "text/html" in request.headers.get("accept", ""):
            titles = {401: "Access denied", 403: "Access denied", 404: "Not found"}
            title = titles.get(refusal.status, "Request failed")
            return page("message.html.j2", refusal.status, title=title, text=refusal.reason)
        return JSONResponse({"error": refusal.reason}, refusal.status)

    def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            reason = "no such page" if error.status_code == 404 else "invalid request"
            return refuse(request, Refused(error.status_code, reason))
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            reason = f"malformed: {first['type']} in {ascii(first['loc'][-1])[:40]}"
            return refuse(request, Refused(422, reason))
        if isinstance(error, sqlite3.DatabaseError):  # the browser stores answers and retries
            status = 503 if "locked" in str(error) else 507
            remedy = "free space on its disk, or stop the program that locks it"
            return refuse(request, Refused(status, f"the database fails ({error}); {remedy}"))
        assert isinstance(error, Refused)
        return refuse(request, error)

    for kind in (Refused, HTTPException, RequestValidationError, sqlite3.DatabaseError):
        app.add_exception_handler(kind, handle)


def serve(
    arena: Arena,
    host: str | None,
    port: int,
    annotators: Sequence[str],
    everybody: bool,
    print_line: Callable[[str], None],
) -> None:
    """Serve on `host` (None for this machine only) until interrupted, then close the database.

    Port 0 takes a free one. See `Arena.invite` for `annotators` and `everybody`.
    `print_line` prints the links and the summary. Raises: ArenaError if it cannot listen there.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises the signal again
    _configure_logging()
    with contextlib.closing(arena.store):
        listening = listen(host or LOCALHOST, port)
        address = _url(host or LOCALHOST, listening.getsockname()[1])
        for name, link in arena.invite(annotators, everybody).items():
            print_line(f"{isolated(name)}: {address}/me/{link}")
        if arena.invited is None:
            path = f"invitation/{arena.signer.token('invitation')}"
            print_line(f"annotators: {address}/{path if needs_invitation(host) else ''}")
        print_line(f"results, for you only: {address}/owner/{arena.signer.token('owner')}")
        print_line(arena.summary())
        uvicorn_server(arena, host).run(sockets=[listening])
        raise KeyboardInterrupt  # only a signal ends it; uvicorn may swallow the one that it got


def uvicorn_server(arena: Arena, host: str | None) -> uvicorn.Server:
    """The HTTP server of an arena that listens on `host`."""
    config = uvicorn.Config(
        create_app(arena, host),
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


def needs_invitation(host: str | None) -> bool:
    """Whether joining needs the invitation link: on any address but this machine's own."""
    try:
        return host is not None and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def allowed_hosts(host: str | None) -> list[str]:
    """Host names that requests may use when the server listens on `host`."""
    names = ["localhost", LOCALHOST, "[::1]"]
    if host in ALL_INTERFACES:  # names unknown; DNS rebinding fails without invitation or session
        return ["*"]
    if host is not None:
        names.append(f"[{host}]" if ":" in host else host)
    if needs_invitation(host):
        own = socket.gethostname()
        names += [own, f"{own}.local", socket.getfqdn()]
    return names


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 takes a free one. Raises: ArenaError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        known = isinstance(error, socket.gaierror) or error.errno is None
        reason = error.strerror if known else os.strerror(error.errno or 0)
        raise ArenaError(
            f"--host {host} --port {port}: cannot listen there ({reason}); "
            "name another one, --port 0 takes a free one"
        ) from None


def _url(host: str, port: int) -> str:
    """URL of the server; for all interfaces that of the address which other machines reach."""
    if host in ALL_INTERFACES:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # finds a route, sends nothing
                host = probe.getsockname()[0]
            except OSError:
                host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _configure_logging() -> None:
    """Log refusals and errors to stderr, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    for name, level in (("directalign.arena", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
