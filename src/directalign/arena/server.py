"""The arena over HTTP: pages for people, JSON for their scripts, images by token. FastAPI behind the `Guard`.

An annotator is known by a cookie that the own link sets, the owner by another; nobody else sees an image, and only the owner the results.
No path of a request ever becomes a path of the file system: pages, scripts and images are looked up in dictionaries made at the start.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.exceptions import HTTPException

from . import offline
from .asking import Arena
from .records import ArenaError, Axis, Level
from .security import App, Guard, Refused, log, log_refusal, quoted
from .store import Side

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
A_MONTH = 30 * 86400
POLICY_OF_RESULTS = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The result page is one file with its style inside, and has no script."""

Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{8,64}$")]


class Posted(BaseModel):
    """What a browser posts: known keys and exact types, nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class JoinPosted(Posted):
    """A name, and the invitation where one is needed. `request` is drawn by the browser and equal in a repetition, whose answer was lost."""

    request: Token
    name: Annotated[str, StringConstraints(max_length=1000)]
    invitation: Annotated[str, StringConstraints(max_length=100)] = ""


class AnswerPosted(Posted):
    """What every answer says: who gives it (the number in their link), a number of its own, equal in a repetition, and the task."""

    annotator: int
    request: RequestId
    task: Token


class VotePosted(AnswerPosted):
    """The better side of a task; None takes the vote back."""

    choice: Side | None


class RatingPosted(AnswerPosted):
    """A level of one image on one axis; None takes it back."""

    image: Token
    axis: Axis
    level: Level | None


def create_app(arena: Arena, names: frozenset[str], invitation: bool, closed: bool) -> App:
    """The application.

    Args:
        names: hosts by which it may be called (see `Guard`).
        invitation: whether joining takes the invitation's link.
        closed: whether only those may take part who have a link already.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    doors = Doors(arena, invitation, closed)
    _add_pages(app, arena, doors)
    _add_answers(app, arena, doors)
    _add_results(app, arena, doors)
    _add_refusals(app)
    return Guard(app, names)


class Doors:
    """Who may come in: cookies and links."""

    def __init__(self, arena: Arena, invitation: bool, closed: bool) -> None:
        self.arena, self.invitation, self.closed = arena, invitation, closed
        mark = arena.blind.token("cookie")[:8]  # arenas on other ports of a host share its cookies
        self.annotator_cookie, self.owner_cookie = f"arena_{mark}", f"arena_owner_{mark}"

    def annotator(self, request: Request) -> int:
        """Whose session it is. Raises: Refused."""
        return self.arena.annotator(request.cookies.get(self.annotator_cookie, ""))

    def giver(self, request: Request, posted: AnswerPosted) -> int:
        """Whose answer it is. Raises: Refused where a browser gives one annotator's answer in the session of another, opened in a second tab."""
        annotator = self.annotator(request)
        if annotator != posted.annotator:
            raise Refused(401, "this browser has another annotator's session now; open your own link again")
        return annotator

    def has_session(self, request: Request) -> bool:
        """Whether a cookie of an annotator came along; it may still be forged."""
        return self.annotator_cookie in request.cookies

    def check_viewer(self, request: Request) -> None:
        """Images are for annotators and the owner. Raises: Refused."""
        if not self._is_owner(request):
            self.annotator(request)

    def check_owner(self, request: Request) -> None:
        """Raises: Refused for everybody else."""
        if not self._is_owner(request):
            raise Refused(403, "the results are for the one who started the arena; open the owner's link that the command printed")

    def check_invitation(self, token: str) -> None:
        """Raises: Refused where joining is closed or the invitation is not the one printed."""
        if self.closed:
            raise Refused(403, "this arena is for those who were given a link of their own; open yours")
        if self.invitation and not self.arena.blind.opens("invitation", token):
            raise Refused(403, "this arena needs an invitation; open the link that you were sent")

    def _is_owner(self, request: Request) -> bool:
        return self.arena.blind.opens("owner", request.cookies.get(self.owner_cookie, ""))

    def let_in(self, response: Response, link: str) -> Response:
        """Set the annotator's cookie."""
        response.set_cookie(self.annotator_cookie, link, max_age=A_MONTH, httponly=True, samesite="strict")
        return response


def _add_pages(app: FastAPI, arena: Arena, doors: Doors) -> None:
    files = {file.name: file for file in TEMPLATES.iterdir() if file.suffix in KINDS}
    contents = {name: (file.read_bytes(), KINDS[file.suffix]) for name, file in files.items()}

    @app.get("/")
    def home(request: Request) -> Response:
        if doors.has_session(request):
            doors.annotator(request)
            return page(f"{arena.mode}.html.j2")
        doors.check_invitation("")
        return page("start.html.j2", mode=arena.mode, invitation="", name=None)

    @app.get("/invitation/{token}")
    def invited(token: str) -> Response:
        doors.check_invitation(token)
        return page("start.html.j2", mode=arena.mode, invitation=token, name=None)

    @app.get("/me/{link}")
    def own_link(link: str) -> Response:
        name = arena.name(arena.annotator(link))
        return doors.let_in(page("start.html.j2", mode=arena.mode, invitation="", name=name), link)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in contents:
            raise Refused(404, "no such file")
        body, kind = contents[name]
        return Response(body, media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/image/{token}")
    def image(token: str, request: Request) -> Response:
        doors.check_viewer(request)
        try:
            content = arena.pictures.png(token)
        except ArenaError as error:  # its words name the file, and so the model
            log.error("%s", quoted(str(error), 500))
            raise Refused(503, "this picture cannot be had now; whoever started the arena finds in its log why") from None
        if content is None:
            raise Refused(404, "no such image")
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})


def _add_answers(app: FastAPI, arena: Arena, doors: Doors) -> None:
    @app.post("/api/join")
    def join(posted: JoinPosted) -> Response:
        doors.check_invitation(posted.invitation)
        link = arena.blind.link(arena.join(posted.name, posted.request))
        return doors.let_in(JSONResponse({"link": link}), link)

    @app.get("/api/state")
    def state(request: Request) -> Response:
        return JSONResponse(arena.state(doors.annotator(request)))

    @app.post("/api/vote")
    def vote(posted: VotePosted, request: Request) -> Response:
        return JSONResponse(arena.vote(doors.giver(request, posted), posted.request, posted.task, posted.choice))

    @app.post("/api/rating")
    def rating(posted: RatingPosted, request: Request) -> Response:
        return JSONResponse(arena.rate(doors.giver(request, posted), posted.request, posted.task, posted.image, posted.axis, posted.level))


def _add_results(app: FastAPI, arena: Arena, doors: Doors) -> None:
    @app.get("/owner/{token}")
    def owner(token: str) -> Response:
        if not arena.blind.opens("owner", token):
            raise Refused(401, "this is not the owner's link")
        response = page("message.html.j2", title="Welcome back", text="The results are one click away.", go_to="/results", go="Show the results")
        response.set_cookie(doors.owner_cookie, token, max_age=A_MONTH, httponly=True, samesite="strict")
        return response

    @app.get("/results")
    def results(request: Request) -> Response:
        doors.check_owner(request)
        return HTMLResponse(offline.page(arena.store, "/results/"), headers={"content-security-policy": POLICY_OF_RESULTS})

    @app.get("/results/{name}")
    def table(name: str, request: Request) -> Response:
        doors.check_owner(request)
        if name not in offline.TABLES:
            raise Refused(404, "no such table")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        headers = {"content-disposition": f'attachment; filename="{stamp}-{name}"'}
        return Response(offline.TABLES[name](arena.store).encode(), media_type="text/csv; charset=utf-8", headers=headers)


def _add_refusals(app: FastAPI) -> None:
    """Whatever is refused is one line in the log and a sentence for the client, never a traceback."""

    def refuse(request: Request, refusal: Refused) -> Response:
        log_refusal(request.scope, refusal)
        if "text/html" in request.headers.get("accept", ""):
            return page("message.html.j2", refusal.status, title="This door stays shut", text=refusal.reason, go_to="", go="")
        return JSONResponse({"error": refusal.reason}, refusal.status)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return refuse(request, error)

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> Response:
        return refuse(request, Refused(error.status_code, "no such page here" if error.status_code == 404 else "not possible here"))

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refuse(request, Refused(422, f"malformed: {first['type']} in {ascii(first['loc'][-1])[:40]}"))


_ENVIRONMENT = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page from its template, everything escaped."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(**context), status)
