"""The page of all runs of a folder over HTTP: live curves, samples, start, stop and resume.

Pages are HTML; what changes while a run trains is a fragment that the browser asks for again. No
request path becomes a file path: runs, recipes and samples are looked up by name. Without --host
the server listens on this machine only; with it, every request needs the cookie that the printed
link sets. Whoever may use the page may run code: a recipe can name Python files.
"""

import io
import secrets
import signal
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import StringConstraints
from starlette.types import ASGIApp

from ..errors import DirectAlignError
from ..io.yaml_text import MAX_BYTES
from ..report import page as report_page
from ..report.basis import common_count, measured_with, on_equal_pairs, prompts_measured
from ..report.charts import Axes, Figure, IntervalAxis, Series, line_chart
from ..report.format import counted, cut
from ..report.images import UNREADABLE, cut_grid, prompts_of
from ..report.page import environment
from ..report.read import metric_of
from ..report.run_page import TEXTS, changes, method_of, metric_axes
from ..report.runs_page import table
from ..web.security import Refused
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
from .form import Form, changed, form_of
from .runs import Run, Runs, settings_text

TEMPLATES = Path(__file__).parent / "templates"
PAGES = environment(TEMPLATES, report_page.TEMPLATES)
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "sandbox allow-scripts"
)
"""Content policy of a run's own page, which has inline style and script: no access to this one."""
FIRST_RECIPE = "world_srpo_lora"
TRAINED = ("reward", "loss", "grad_norm")
"""Numbers of the steps that are drawn."""

Name = Annotated[str, StringConstraints(max_length=100)]
Yaml = Annotated[str, StringConstraints(max_length=MAX_BYTES)]


class RunPosted(Posted):
    """A run to stop or resume."""

    run: Name


class FormPosted(Posted):
    """A recipe's text, and the texts of the fields that have changed since, by key."""

    text: Yaml
    changes: dict[str, Yaml]


class StartPosted(FormPosted):
    """`name`: of the new run's folder."""

    name: Name


class Access:
    """Who may use the page: everyone on this machine, elsewhere browsers with the token."""

    def __init__(self, host: str | None) -> None:
        self.token = secrets.token_urlsafe(24) if is_public(host) else ""
        self.cookie = f"directalign_{secrets.token_hex(4)}"  # servers on other ports share cookies

    def check(self, request: Request) -> None:
        """Raises: Refused without the token's cookie."""
        if self.token and not self.verifies(request.cookies.get(self.cookie, "")):
            raise Refused(403, "open the link that directalign ui printed in its terminal")

    def verifies(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(errors="replace"), self.token.encode())


def create_app(runs: Runs, host: str | None, access: Access) -> ASGIApp:
    """The application of a server that listens on `host` (None: this machine)."""
    app = new_app()
    add_static(app, [*TEMPLATES.iterdir(), *report_page.TEMPLATES.iterdir()])
    for add in (_add_pages, _add_images, _add_api):
        add(app, runs)

    @app.middleware("http")
    async def authorize(request: Request, call_next: Callable[..., Any]) -> Response:
        is_open = request.url.path.startswith(("/open/", "/static/"))
        try:
            if not is_open:
                access.check(request)
        except Refused as refusal:
            return refuse(request, refusal)
        return await call_next(request)

    @app.get("/open/{token}")
    def open_link(token: str) -> Response:
        if not access.verifies(token):
            raise Refused(403, "this is not the link that directalign ui printed in its terminal")
        return with_cookie(RedirectResponse("/", 303), access.cookie, token, samesite="lax")

    def message(title: str, text: str, status: int) -> Response:
        return _html("message.html.j2", status, title=title, text=text)

    def handle(request: Request, error: Exception) -> Response:
        return refuse(request, Refused(500, " ".join(str(error).split())))

    refuse = add_error_handlers(app, message)
    for kind in (OSError, DirectAlignError):  # such as a folder that is gone, or a full disk
        app.add_exception_handler(kind, handle)
    return guarded(app, host)


def _html(template: str, code: int = 200, **context: Any) -> HTMLResponse:
    return HTMLResponse(PAGES.get_template(template).render(**context), code)


def _fragment(request: Request, version: str, template: str, **context: Any) -> Response:
    """A part of a page, or 304 if the browser has this version of it already."""
    tag = f'"{hash(version) & 0xFFFFFFFFFFFF:x}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304)
    response = _html(template, **context)
    response.headers["etag"] = tag
    return response


def _add_pages(app: FastAPI, runs: Runs) -> None:
    @app.get("/")
    def home() -> Response:
        return _html("runs.html.j2", folder=runs.folder.absolute(), groups=_groups(runs.all()))

    @app.get("/part/runs")
    def runs_part(request: Request) -> Response:
        found = runs.all()
        version = "\n".join(run.version for run in found)
        return _fragment(request, version, "runs_part.html.j2", groups=_groups(found))

    @app.get("/run/{name}")
    def one(name: str) -> Response:
        run = runs.get(name)
        return _html("run.html.j2", **_live(run), prompts=prompts_of(run.files))

    @app.get("/part/run/{name}")
    def one_part(name: str, request: Request) -> Response:
        run = runs.get(name)
        return _fragment(request, run.version, "run_part.html.j2", **_live(run))

    @app.get("/report/{name}")
    def report(name: str) -> Response:
        file = runs.get(name).folder / report_page.NAME
        if not file.is_file():
            raise Refused(404, "this run has no page yet")
        headers = {"content-security-policy": REPORT_POLICY}
        return HTMLResponse(file.read_text(encoding="utf-8"), headers=headers)

    @app.get("/new")
    def new(recipe: str = FIRST_RECIPE) -> Response:
        groups = runs.recipes()
        known = {key: file for group in groups.values() for key, file in group.items()}
        if recipe not in known:
            raise Refused(404, "there is no recipe of this name")
        try:
            form = form_of(settings_text(known[recipe]))
        except (OSError, DirectAlignError, UnicodeDecodeError) as error:
            raise Refused(422, f"{recipe} cannot be read: {error}") from error
        stem = recipe.rpartition(":")[2].removesuffix(".yaml").removesuffix(".yml")
        name = runs.free_name(stem)
        groups = {title: list(group) for title, group in groups.items()}
        return _html("new.html.j2", form=form, recipe=recipe, groups=groups, name=name)


def _groups(found: Sequence[Run]) -> list[dict[str, Any]]:
    """The runs in their order; those whose first main metric compares are together.

    A group has a `title`, the metric (`what`, `key`), the number `n` of pairs that all have, and
    the `rows` of (run, metrics before and after or None).
    """
    order = {run.name: place for place, run in enumerate(found)}
    groups: dict[Any, dict[str, Any]] = {}
    for alike in on_equal_pairs([run.files for run in found if run.files.ends]):
        n = common_count(alike)
        pairs = f"{counted(n, 'pair') if n else 'pairs'} from {cut(prompts_measured(alike[0]), 80)}"
        for files, ends in table(alike):
            what, key = next(((one["title"], one["key"]) for one in changes(files)), ("", ""))
            group = {"title": f"{what} on {pairs}".strip(), "what": what, "key": key, "n": n}
            basis = pairs, key, measured_with(files, key)
            rows = groups.setdefault(basis, {**group, "rows": []})["rows"]
            rows.append((found[order[files.key]], ends))
    if rest := [(run, None) for run in found if not run.files.ends]:
        groups[None] = {"title": "Not measured yet", "rows": rest}
    for group in groups.values():
        group["rows"].sort(key=lambda row: order[row[0].name])
    return sorted(groups.values(), key=lambda group: order[group["rows"][0][0].name])


def _live(run: Run) -> dict[str, Any]:
    """What the part of a page that changes with a run needs."""
    return {
        "run": run,
        "status": run.status,
        "changes": changes(run.files),
        "axis": IntervalAxis(),
        "figures": _figures(run),
        "method": method_of(run.files) if run.files.settings else "",
        "samples": [step for step, _ in run.files.samples],
        "num_prompts": len(prompts_of(run.files)),
    }


def _figures(run: Run) -> list[Figure]:
    """Charts of the main metrics and of the training steps."""
    files, found = run.files, []
    main = [change["key"] for change in changes(files)] or files.measured_names[:1]
    for key in main:
        each = metric_of([files], key)
        series = [Series("", files.measured_curve(key), "s0", files.band(key))]
        chart = line_chart(series, metric_axes(each), f"{each.label} by update")
        found.append(Figure(each.label, chart, " ".join((each.description, files.num_samples))))
    for key in TRAINED:
        title, caption = TEXTS["training"][key]
        axes = Axes("update", title.lower())
        chart = line_chart([Series("", files.curve(key))], axes, f"{title} by update")
        found.append(Figure(title, chart, caption))
    return [figure for figure in found if figure.chart]


@lru_cache(maxsize=64)
def _cells(file: Path, modified: int, count: int) -> list[bytes]:
    """The images of a sample grid as PNG files."""
    found = []
    for cell in cut_grid(file, count):
        stream = io.BytesIO()
        cell.save(stream, format="PNG", compress_level=1)
        found.append(stream.getvalue())
    return found


def _add_images(app: FastAPI, runs: Runs) -> None:
    @app.get("/sample/{name}/{step}/{cell}")
    def sample(name: str, step: int, cell: int) -> Response:
        run = runs.get(name)
        file = dict(run.files.samples).get(step)
        try:
            assert file is not None, "no grid of this step"
            cells = _cells(file, file.stat().st_mtime_ns, len(prompts_of(run.files)))
            content = cells[cell]
        except (AssertionError, IndexError, *UNREADABLE) as error:
            raise Refused(404, f"there is no such image ({error})") from error
        headers = {"cache-control": "private, max-age=3600"}
        return Response(content, media_type="image/png", headers=headers)


def _add_api(app: FastAPI, runs: Runs) -> None:
    @app.post("/api/form")
    def form(posted: FormPosted) -> Response:
        return _form_answer(_form(posted))

    @app.post("/api/start")
    def start(posted: StartPosted) -> Response:
        form = _form(posted)
        if form.errors:
            return _form_answer(form, 422)
        run = runs.start(posted.name.strip(), form.text)
        return JSONResponse({"page": f"/run/{quote(run.name)}"})

    @app.post("/api/stop")
    def stop(posted: RunPosted) -> Response:
        return JSONResponse({"state": runs.stop(posted.run).status.state})

    @app.post("/api/resume")
    def resume(posted: RunPosted) -> Response:
        return JSONResponse({"state": runs.resume(posted.run).status.state})


def _form(posted: FormPosted) -> Form:
    try:
        text = changed(posted.text, posted.changes)
    except DirectAlignError:
        text = posted.text  # `form_of` says what is wrong with it
    return form_of(text)


def _form_answer(form: Form, status: int = 200) -> Response:
    """The text and the fields as HTML; `error` counts the mistakes."""
    html = PAGES.get_template("fields.html.j2").render(form=form)
    count = len(form.errors)
    error = f"{count} {'setting needs' if count == 1 else 'settings need'} a correction"
    answer = {"text": form.text, "html": html, "error": error if count else ""}
    return JSONResponse(answer, status)


def serve(folder: Path, host: str | None, port: int, print_line: Callable[[str], None]) -> None:
    """Serve the runs of `folder` on `host` (None for this machine only) until interrupted.

    Runs that were started go on. Port 0 takes a free one. Raises: DirectAlignError if it cannot
    listen there, or if the folder cannot be used.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises the signal again
    configure_logging()
    runs, access = Runs(folder), Access(host)
    listening = listen(host or LOCALHOST, port)
    address = address_of(host or LOCALHOST, listening.getsockname()[1])
    link = f"{address}/open/{access.token}" if access.token else f"{address}/"
    print_line(f"runs in {folder}: {link}")
    if not access.token:
        print_line(ONLY_HERE)
    http_server(create_app(runs, host, access)).run(sockets=[listening])
    raise KeyboardInterrupt  # only a signal ends it; uvicorn may swallow the one that it got
