"""Experiment trackers: TensorBoard, W&B, trackio, with the names and steps of metrics.jsonl.

The backends are those of `accelerate.tracking`; wandb and trackio are imported only when a recipe
names them. Added here, because accelerate has nothing for it: resuming a run without duplicates
(`tracked.json` stores its key; local backends are rewritten from the records, online ones
continue), W&B's exit code, captions and step axis, and `BackgroundTracker`, which isolates training
from network failures. Online rows beyond a checkpoint cannot be removed.
"""

import io
import json
import logging
import netrc
import os
import re
import secrets
import shutil
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import copy_context
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import huggingface_hub
import numpy as np
from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
from jaxtyping import UInt8
from PIL import Image
from pydantic import BaseModel

from .. import config
from ..io import hub
from ..io.atomic import write_text
from ..io.text import read_json
from ..types import DirectAlignError

logger = logging.getLogger(__name__)
KEY_FILE, IMAGES, STEP_AXIS = "tracked.json", "samples", "step"
WANDB_HOST = "api.wandb.ai"
"""Host under which most .netrc files list the key."""
TRACKIO_REDIRECTS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables that would send a local trackio run elsewhere."""
WANDB_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("silent", "disable_git", "disable_code", "finish_timeout_raises"), True),
    **dict.fromkeys(("x_disable_stats", "x_disable_meta", "x_disable_machine_info"), True),
    **dict.fromkeys(("save_code", "x_save_requirements"), False),
} | {"console": "off", "init_timeout": 45.0, "finish_timeout": 60.0}
"""No console capture, system statistics, code or machine data; timeouts in seconds."""
TIMEOUT, FINAL_TIMEOUT = 300.0, 90.0
"""Seconds without progress after which a tracker is dropped, during the run and at its end."""

Pixels = UInt8[np.ndarray, "H W 3"]
Values = Mapping[str, float | str]


@runtime_checkable
class Tracker(Protocol):
    """Logs one run, from one thread, in order.

    `has_history`: the backend still has what earlier processes logged. `close(finished)`:
    `finished` is False if the run may be resumed.
    """

    has_history: bool

    def log_values(self, values: Values, step: int) -> None: ...
    def log_image(self, pixels: Pixels, step: int) -> None: ...
    def log_summary(self, summary: Mapping[str, Any]) -> None: ...
    def close(self, finished: bool) -> None: ...


class RunInfo(BaseModel):
    """`key` identifies the run across resumes, `caption` describes its sample grids.

    `space` names the trackio Space and project of earlier processes. Only `key` and `space` are
    stored, in `tracked.json`.
    """

    key: str
    space: str | None
    name: str = ""
    config: dict[str, Any] = {}
    caption: str = ""


def run_info(run: config.RunConfig, out: Path, prompts: Sequence[str]) -> RunInfo:
    """The run in `out` with its key (new if it has none); the config without passwords in URLs."""
    file = out / KEY_FILE
    stored: Any = {"key": secrets.token_hex(4), "space": None}
    if file.exists():
        remedy = "remove it, and the trackers take this for a new run"
        stored = read_json(file, remedy, RunInfo)
    caption = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts, start=1))
    public = json.loads(re.sub(r'(?<=://)[^/@\s"]+@', "", run.model_dump_json()))
    return RunInfo(**{**stored, "name": run.name, "config": public, "caption": caption})


def values_of(record: Mapping[str, Any]) -> dict[str, float | str]:
    """All numbers and texts of a record as {"EVENT/NAME/...": value}; lists are omitted."""

    def leaves(value: Any, name: str) -> Iterator[tuple[str, float | str]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key not in ("event", "step"):
                    yield from leaves(inner, f"{name}/{key}")
        elif isinstance(value, (str, int, float)):
            yield name, value if isinstance(value, str) else float(value)

    return dict(leaves(record, record["event"]))


def open_trackers(run: config.RunConfig, out: Path, prompts: Sequence[str]) -> list[Tracker]:
    """The trackers of the run in `out`; one that cannot be opened is left out with a warning.

    Raises: DirectAlignError for a missing package or login.
    """
    info, wandb, trackio = run_info(run, out, prompts), run.trackers.wandb, run.trackers.trackio
    PartialState()  # accelerate cannot log without it; it uses the existing process group
    opened: list[Tracker] = [TensorBoard(out, info)] if run.trackers.tensorboard else []

    def store_key(space: str | None) -> None:
        write_text(out / KEY_FILE, json.dumps({"key": info.key, "space": space}, indent=1) + "\n")

    def add(name: str, catch_up: str, create: Callable[[], Tracker]) -> bool:
        try:
            opened.append(BackgroundTracker(create(), name, catch_up))
        except DirectAlignError:
            raise
        except Exception as error:  # a third-party library raises any kind
            reason = f"{name} cannot be opened ({_first_line(error)})"
            logger.warning(f"{reason}; the run continues without it. {catch_up}")
            return False
        return True

    if wandb is not None or trackio is not None:
        store_key(info.space)  # before they open: a run that is killed now keeps its key
    if wandb is not None:
        catch_up = "To catch up: --resume with --set trackers.wandb.mode=offline, then "
        catch_up += _wandb_sync(out, info)
        add("Weights & Biases", catch_up, lambda: open_wandb(wandb, out, info))
    if trackio is not None:
        catch_up = "To catch up: --resume, which rewrites the run"
        if trackio.space is not None:
            catch_up = "To catch up: --resume with --set trackers.trackio.space=null, then trackio "
            catch_up += f"sync --project {trackio.project} --space-id {trackio.space}"
        if add("trackio", catch_up, lambda: Trackio(trackio, info)):
            store_key(f"{trackio.space} {trackio.project}" if trackio.space is not None else None)
    return opened


class BackgroundTracker:
    """Runs a tracker in a thread. A failure or a timeout is reported once and drops the tracker."""

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        catch_up: str,
        timeout: float = TIMEOUT,
        final_timeout: float = FINAL_TIMEOUT,
    ) -> None:
        self.has_history = tracker.has_history
        self._tracker, self._name, self._catch_up = tracker, name, catch_up
        self._timeout, self._final_timeout = timeout, final_timeout
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._progress = time.monotonic()
        self._dropped, self._lock = False, threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def log_values(self, values: Values, step: int) -> None:
        self._submit(self._tracker.log_values, values, step)

    def log_image(self, pixels: Pixels, step: int) -> None:
        self._submit(self._tracker.log_image, pixels, step)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._submit(self._tracker.log_summary, summary)

    def close(self, finished: bool) -> None:
        """Wait until everything is sent, at most `final_timeout` seconds."""
        self._submit(self._tracker.close, finished)
        self._queue.put(None)
        self._thread.join(0 if self._dropped else self._final_timeout)
        if self._thread.is_alive():
            self._drop(f"made no progress for {self._final_timeout:.0f} s at the end")

    def _submit(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._queue.empty():
            self._progress = time.monotonic()
        elif time.monotonic() - self._progress > self._timeout:
            self._drop(f"made no progress for {self._timeout:.0f} s")
        if not self._dropped:
            self._queue.put(partial(call, *arguments))

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                if not self._dropped:
                    task()
            except Exception as error:  # a third-party library raises any kind
                self._drop(f"failed ({_first_line(error)})")
            self._progress = time.monotonic()

    def _drop(self, reason: str) -> None:
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
        rest = f"the run continues without it, metrics.jsonl is complete. {self._catch_up}"
        logger.warning(f"{self._name} {reason}; {rest}")


class TensorBoard(TensorBoardTracker):
    """Event files in `out/tensorboard`, rewritten when the run is opened; float32 values."""

    has_history, main_process_only = False, False

    def __init__(self, out: Path, info: RunInfo) -> None:
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        super().__init__("tensorboard", out, flush_secs=30)
        self.start()
        self.log({"config": _as_code(info.config), f"{IMAGES}/prompts": info.caption})

    def log_values(self, values: Values, step: int) -> None:
        self.log(dict(values), step)

    def log_image(self, pixels: Pixels, step: int) -> None:
        self.log_images({IMAGES: pixels[None]}, step, dataformats="NHWC")

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self.log({"summary": _as_code(summary)})

    def close(self, finished: bool) -> None:
        self.finish()


class WandB(WandBTracker):
    """A W&B run with an own step axis, so that records of an earlier step are accepted."""

    def __init__(self, package: ModuleType, caption: str, project: str, **init: Any) -> None:
        super().__init__(project, **init)
        self._wandb, self._caption = package, caption
        self.start()
        self.has_history: bool = self.run.resumed
        self.run.define_metric(STEP_AXIS, hidden=True)
        self.run.define_metric("*", step_metric=STEP_AXIS)

    def log_values(self, values: Values, step: int) -> None:
        self.log({**values, STEP_AXIS: step})

    def log_image(self, pixels: Pixels, step: int) -> None:
        image = self._wandb.Image(Image.fromarray(pixels), caption=self._caption)
        self.log({IMAGES: image, STEP_AXIS: step})

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(summary))

    def close(self, finished: bool) -> None:
        """Raises: OSError if W&B's service process has died, which leaves an empty file."""
        self.run.finish(exit_code=0 if finished else 1)
        if not any(f.stat().st_size for f in Path(self.run.dir).parent.glob("*.wandb")):
            raise OSError(f"{self.run.dir}: nothing was written")


class Trackio(TrackioTracker):
    """A trackio run: local (rewritten, no request to the Hub) or in a private Space (continued).

    It starts in its own context: trackio has one current run per context.
    """

    def __init__(self, settings: config.TrackioConfig, info: RunInfo) -> None:
        self._trackio, self._caption, self._last_step = require_trackio(settings), info.caption, 0
        name, project, is_local = trackio_run_name(info), settings.project, settings.space is None
        if is_local:
            try:
                former = [run for run in self._trackio.Api().runs(project) if run.name == name]
            except ValueError:  # no such project yet
                former = []
            for run in former:
                run.delete()
        options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "private": True}
        options |= {"resume": "never" if is_local else "allow", "space_id": settings.space}
        super().__init__(project, name=name, config=dict(info.config), **options)
        self.has_history = not is_local and info.space == f"{settings.space} {project}"
        with hub.offline(huggingface_hub.constants, is_local), redirect_stdout(io.StringIO()):
            copy_context().run(self.start)
        command = f"trackio show --project {project}"
        where = f"see it with {command}" if is_local else f"in {settings.space}"
        logger.info(f"trackio: run {name}; {where}")

    def log_values(self, values: Values, step: int) -> None:
        self._last_step = max(self._last_step, step)
        self.log(dict(values), step)

    def log_image(self, pixels: Pixels, step: int) -> None:
        self.log({IMAGES: self._trackio.Image(pixels, caption=self._caption)}, step)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in summary.items())
        self.log({"summary": self._trackio.Markdown(f"| | |\n|---|---|\n{rows}")}, self._last_step)

    def close(self, finished: bool) -> None:
        with redirect_stdout(io.StringIO()):  # it prints about uploads, even of local runs
            self.finish()


def require_wandb(settings: config.WandbConfig) -> ModuleType:
    """The wandb package. Sends nothing.

    Raises: DirectAlignError if it is not installed, or online and not logged in.
    """
    wandb = _import("wandb")
    if settings.mode == "online" and not _has_wandb_login(wandb):
        remedy = "run `wandb login`, set WANDB_API_KEY, or set trackers.wandb.mode: offline"
        raise DirectAlignError(f"trackers.wandb: no login found; {remedy}")
    return wandb


def require_trackio(settings: config.TrackioConfig) -> ModuleType:
    """The trackio package. Sends nothing.

    Raises: DirectAlignError if it is not installed, the Space needs a login, or the environment
    would redirect a local run.
    """
    trackio = _import("trackio")
    if settings.space is not None and huggingface_hub.get_token() is None:
        remedy = "run `hf auth login`, set HF_TOKEN, or remove the space"
        raise DirectAlignError(f"trackers.trackio.space: {settings.space} needs a login; {remedy}")
    redirect = next((name for name in TRACKIO_REDIRECTS if os.environ.get(name)), None)
    if settings.space is None and redirect is not None:
        remedy = "unset it, or name the Space in trackers.trackio.space"
        reason = f"{redirect} is set and would send the run elsewhere"
        raise DirectAlignError(f"trackers.trackio: {reason}; {remedy}")
    return trackio


def open_wandb(settings: config.WandbConfig, out: Path, info: RunInfo) -> WandB:
    """The W&B run, files in `out/wandb`; an offline run if W&B cannot be reached."""
    wandb = require_wandb(settings)
    common: dict[str, Any] = {"id": info.key, "name": settings.name or info.name, "dir": str(out)}
    common |= {"entity": settings.entity, "tags": settings.tags, "config": dict(info.config)}
    common |= {"reinit": "create_new", "settings": wandb.Settings(**WANDB_SETTINGS)}
    create = partial(WandB, wandb, info.caption, settings.project, **common)
    if settings.mode == "online":
        try:
            tracker = create(mode="online", resume="allow")
        except Exception as error:  # wandb's own kinds and its service's for the same failure
            reason = f"Weights & Biases cannot be reached ({_first_line(error)})"
            logger.warning(f"{reason}; the run is recorded offline")
            wandb.teardown()  # its service still holds the run's id
        else:
            logger.info(f"Weights & Biases: {tracker.run.url}")
            return tracker
    for former in (out / "wandb").glob(f"offline-run-*-{info.key}"):
        shutil.rmtree(former)
    wandb.setup(wandb.Settings(mode="offline"))  # else the session uses the network at its end
    tracker = create(mode="offline", resume=None)
    logger.info(f"Weights & Biases: offline; send it with {_wandb_sync(out, info)}")
    return tracker


def trackio_run_name(info: RunInfo) -> str:
    """`NAME-KEY` without slashes and dots: trackio names a folder of images after it."""
    return f"{re.sub(r'[^A-Za-z0-9_, ()-]+', '_', info.name)}-{info.key}"


def _wandb_sync(out: Path, info: RunInfo) -> str:
    return f"wandb sync {out}/wandb/offline-run-*-{info.key}"


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        remedy = f"pip install 'directalign[{name}]', or remove trackers.{name}"
        raise DirectAlignError(f"trackers.{name}: needs the package {name}; {remedy}") from error


def _has_wandb_login(wandb: ModuleType) -> bool:
    """Whether a key or identity token is in the environment, W&B's settings or a .netrc file."""
    found = wandb.setup().settings
    if found.api_key or found.identity_token_file:
        return True
    try:
        file = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser())
    except FileNotFoundError:
        return False
    except (netrc.NetrcParseError, OSError) as error:
        reason, remedy = f"the login cannot be read ({error})", "repair that file, or set"
        raise DirectAlignError(f"trackers.wandb: {reason}; {remedy} WANDB_API_KEY") from error
    return any(file.authenticators(host) for host in (urlsplit(found.base_url).netloc, WANDB_HOST))


def _as_code(value: Mapping[str, Any]) -> str:
    """JSON as a Markdown code block."""
    return textwrap.indent(json.dumps(value, indent=2, ensure_ascii=False), "    ")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), ''):.200}"
