"""The arena over HTTP: pages, JSON API and images by token, as a FastAPI app on uvicorn.

Annotators are known by a cookie that their personal link sets, the owner by another one. Only they
see images, and only the owner the results. No request path becomes a file path: pages, scripts and
images are looked up in dictionaries made at the start. Without --host the server listens on this
machine only; with it, joining needs the invitation link.
"""

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import StringConstraints
from starlette.types import ASGIApp

from ..io.text import isolated
from ..web.security import Refused, log, quoted
from ..web.server import (
    LOCALHOST,
    ONLY_HERE,
    Posted,
    add_error_handlers,
    add_static,
    address_of,
    configure_logging,
    guarded,
    http_server,
    is_public,
    listen,
    new_app,
    with_cookie,
)
from .records import ArenaError, Axis, Level
from .results import PAGES, TABLES, TEMPLATES, render_store
from .session import Arena
from .store import Side

RESULTS_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Content policy of the result page, which has inline style and no script."""

Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{8,64}$")]


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


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template with escaping."""
    return HTMLResponse(PAGES.get_template(template).render(**context), status)


class Auth:
    """Access by cookies and links."""

    def __init__(self, arena: Arena, host: str | None) -> None:
        self.arena = arena
        self.needs_invitation = is_public(host)
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
    app = new_app()
    auth = Auth(arena, host)
    for add in (_add_pages, _add_files, _add_api, _add_results):
        add(app, arena, auth)
    _add_error_handlers(app)
    return guarded(app, host)


def _add_pages(app: FastAPI, arena: Arena, auth: Auth) -> None:
    def start(
        invitation: str = "", annotator: int | None = None, is_other_person: bool = False
    ) -> HTMLResponse:
        known: dict[str, Any] = {"invitation": invitation, "is_other_person": is_other_person}
        known["name"] = "" if annotator is None else arena.names[annotator]
        known["has_begun"] = annotator is not None and arena.has_begun(annotator)
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
        return start(token, auth.session(request))

    @app.get("/another")
    def another_person(invitation: str = "") -> Response:
        auth.require_invitation(invitation)
        return start(invitation, is_other_person=True)

    @app.get("/me/{link}")
    def personal_link(link: str) -> Response:
        annotator = arena.annotator(link)
        return with_cookie(start(annotator=annotator), auth.annotator_cookie, link)


def _add_files(app: FastAPI, arena: Arena, auth: Auth) -> None:
    add_static(app, TEMPLATES.iterdir())

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
        welcome = page("message.html.j2", title="Your arena", text=text, link="/results")
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
    """The common ones, and those of the database."""

    def message(title: str, text: str, status: int) -> Response:
        return page("message.html.j2", status, title=title, text=text)

    refuse = add_error_handlers(app, message)

    def handle(request: Request, error: Exception) -> Response:  # the browser stores and retries
        status = 503 if "locked" in str(error) else 507
        remedy = "free space on its disk, or stop the program that locks it"
        return refuse(request, Refused(status, f"the database fails ({error}); {remedy}"))

    app.add_exception_handler(sqlite3.DatabaseError, handle)


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
    `print_line` prints the links and the summary. Raises: DirectAlignError if it cannot
    listen there.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises the signal again
    configure_logging()
    with contextlib.closing(arena.store):
        listening = listen(host or LOCALHOST, port)
        address = address_of(host or LOCALHOST, listening.getsockname()[1])
        for name, link in arena.invite(annotators, everybody).items():
            print_line(f"{isolated(name)}: {address}/me/{link}")
        if arena.invited is None:
            path = f"invitation/{arena.signer.token('invitation')}"
            print_line(f"annotators: {address}/{path if is_public(host) else ''}")
        print_line(f"results, for you only: {address}/owner/{arena.signer.token('owner')}")
        print_line(arena.summary())
        if not is_public(host):
            print_line(ONLY_HERE)
        http_server(create_app(arena, host)).run(sockets=[listening])
        raise KeyboardInterrupt  # only a signal ends it; uvicorn may swallow the one that it got
