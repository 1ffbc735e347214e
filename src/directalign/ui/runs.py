"""The runs of a folder: their state, and the training processes that the page starts and stops.

A run that is started gets a folder with `recipe.yaml` and `train.log`; training adds the rest. The
process has a session of its own: it goes on when the page, the browser or this server ends. Stop
sends the signal after which training saves a checkpoint.
"""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ..config.load import RECIPES, dump_run, load_run, recipe_names
from ..errors import DirectAlignError
from ..io.atomic import write_text
from ..report.read import RunFiles, is_run, read_run
from ..report.status import FAILED, FILE, STOPPED, Status, resume_arguments, status_of
from ..web.security import Refused

RECIPE, LOG = "recipe.yaml", "train.log"
STARTING, STOPPING = "starting", "stopping"
"""States that only the server knows: the models are loading; the signal to stop is sent."""
BEFORE_START = "the process ended before its first step"
NAME = re.compile(r"[^\W_][\w .+-]{0,79}")
READ = ("metrics.jsonl", "run.yaml", "summary.json", FILE, "samples", LOG)
"""Files whose change makes a run be read again."""
LOG_LINES, LOG_BYTES = 40, 20_000
CLOCK_SECONDS = 2.0
"""How exact the times of processes and files are to each other."""
WINDOWS = os.name == "nt"


@dataclass(frozen=True)
class Run:
    """A run as the page shows it; `version` changes whenever something of it does."""

    name: str
    folder: Path
    files: RunFiles
    status: Status
    log: list[str]
    version: str

    @property
    def title(self) -> str:
        return self.files.name

    @property
    def is_active(self) -> bool:
        return self.status.is_running or self.status.state in (STARTING, STOPPING)


class Runs:
    """All runs directly inside a folder. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises: DirectAlignError if the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot be a folder of runs ({error.strerror}); name another one"
            raise DirectAlignError(f"{folder}: {reason}") from error
        self.folder = folder
        self._lock = threading.RLock()
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self._spawned: dict[str, float] = {}  # when, in seconds
        self._stopped: set[str] = set()  # have got the signal
        self._read: dict[str, tuple[str, RunFiles, list[str]]] = {}

    def all(self) -> list[Run]:
        """Every run; those that run first, then the newest."""
        names = [path.name for path in self.folder.iterdir() if _is_ours(path)]
        found = [self._run(name) for name in names]
        found.sort(key=lambda run: (not run.is_active, -max(_versions(run.folder))[0]))
        return found

    def get(self, name: str) -> Run:
        """The run of a name. Raises: Refused if there is none."""
        if name not in {path.name for path in self.folder.iterdir() if _is_ours(path)}:
            raise Refused(404, "there is no run of this name")
        return self._run(name)

    def start(self, name: str, text: str) -> Run:
        """Train the recipe `text` in a new folder. Raises: Refused for a name that will not do."""
        with self._lock:
            if not NAME.fullmatch(name) or name.endswith((".", " ")):
                raise Refused(422, "a name has letters, digits, spaces, and . + - _ inside")
            folder = self.folder / name
            if is_run(folder) or (folder.exists() and not _is_ours(folder)):
                raise Refused(409, f"there is a folder {name} already; choose another name")
            if self._is_alive(name):
                raise Refused(409, f"{name} is starting already")
            folder.mkdir(exist_ok=True)
            write_text(folder / RECIPE, text)
            self._spawn(name, ["train", str(folder / RECIPE), "--out", str(folder)])
            return self._run(name)

    def resume(self, name: str) -> Run:
        """Continue a run, or start again one that never got going. Raises: Refused."""
        with self._lock:
            run = self.get(name)
            if run.is_active:
                raise Refused(409, f"{name} is running already")
            if not run.status.is_resumable:
                raise Refused(409, f"{name} is finished")
            again = ["train", str(run.folder / RECIPE), "--out", str(run.folder)]
            self._spawn(name, resume_arguments(run.folder) if is_run(run.folder) else again)
            return self._run(name)

    def stop(self, name: str) -> Run:
        """Let a run save a checkpoint after its step and end. Raises: Refused."""
        with self._lock:
            run = self.get(name)
            if not run.is_active:
                raise Refused(409, f"{name} is not running")
            if run.status.state != STOPPING:  # a second signal would end it without saving
                self._send_signal(run)
                self._stopped.add(name)
            return self._run(name)

    def recipes(self) -> Mapping[str, dict[str, Path]]:
        """{group: {key: file}} of every recipe that the form may begin with."""
        here = [*Path.cwd().glob("*.y*ml"), *self.folder.glob("*.y*ml")]
        runs = {each.name: each.folder / "run.yaml" for each in self.all()}
        for name, file in runs.items():
            runs[name] = file if file.is_file() else file.with_name(RECIPE)
        return {
            "Recipes of the package": {each: RECIPES / f"{each}.yaml" for each in recipe_names()},
            "Files": {f"file:{each.name}": each for each in here},
            "Settings of a run": {f"run:{name}": file for name, file in runs.items()},
        }

    def free_name(self, wanted: str) -> str:
        """A name that no run has: the wanted one, or with a number."""
        numbered = (f"{wanted}-{number}" for number in itertools.count(2))
        names = itertools.chain([wanted], numbered)
        return next(name for name in names if not (self.folder / name).exists())

    def _send_signal(self, run: Run) -> None:
        """Ask the process of a run to stop: one of this server's, or the one that status.json names
        if it is on this machine and started before that file was written. Raises: Refused."""
        status, file = run.status, run.folder / FILE
        try:
            if self._is_alive(run.name):
                process = psutil.Process(self._processes[run.name].pid)
            elif status.host not in ("", socket.gethostname()):
                raise Refused(409, f"it trains on {status.host}; stop it there")
            else:
                process = psutil.Process(status.pid)
                if process.create_time() > file.stat().st_mtime + CLOCK_SECONDS:
                    raise psutil.NoSuchProcess(status.pid)
            sent = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)
            process.send_signal(sent if WINDOWS else signal.SIGTERM)
        except (psutil.Error, OSError, ValueError) as error:
            reason = f"its process {status.pid} cannot be reached; stop it where it was started"
            raise Refused(409, reason) from error

    def _spawn(self, name: str, arguments: list[str]) -> None:
        """Start `directalign` in a process that outlives this one."""
        apart: dict[str, Any] = {"start_new_session": True}
        if WINDOWS:
            apart = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-m", "directalign", *arguments]
        self._spawned[name] = time.time()
        with (self.folder / name / LOG).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                **apart,
            )
        self._stopped.discard(name)

    def _is_alive(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def _run(self, name: str) -> Run:
        with self._lock:
            folder = self.folder / name
            alive = self._is_alive(name)  # before the files are read: it may end in between
            version = str(_versions(folder))
            known = self._read.get(name)
            if known is None or known[0] != version:
                known = version, read_run(folder), _log_lines(folder / LOG)
                self._read[name] = known
            _, files, log = known
            status = self._status(name, files, log, alive)
            return Run(name, folder, files, status, log, f"{version} {status}")

    def _status(self, name: str, files: RunFiles, log: list[str], alive: bool) -> Status:
        """What the files say, and what is known of the process."""
        found, process = status_of(files), self._processes.get(name)
        if name in self._stopped and (alive or found.is_running):
            return replace(found, state=STOPPING)
        if found.is_running:
            return found
        if alive:
            return replace(found, state=STARTING, reason="")
        file, was_stopped = files.folder / FILE, name in self._stopped
        said = file.exists() and file.stat().st_mtime >= self._spawned.get(name, 0.0)
        if said:
            self._stopped.discard(name)
        if not is_run(files.folder) or (process and process.returncode and not said):
            if was_stopped:
                return replace(found, state=STOPPED, reason="")
            last = log[-1].removeprefix("directalign: ") if log else BEFORE_START
            return replace(found, state=FAILED, reason=last)
        return found


def settings_text(file: Path) -> str:
    """The text of a recipe; of a run's `run.yaml` without the comments that a resume reads."""
    return dump_run(load_run(file)) if file.name == "run.yaml" else file.read_text("utf-8")


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and (is_run(folder) or (folder / LOG).is_file())


def _versions(folder: Path) -> list[tuple[int, int]]:
    """When each of `READ` was last written, in nanoseconds, and its size; (0, 0) without it."""
    found = []
    for name in READ:
        try:
            stat = (folder / name).stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0))
    return found


def _log_lines(file: Path) -> list[str]:
    """The last lines of the process's output."""
    if not file.is_file():
        return []
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - LOG_BYTES))
        return stream.read().decode("utf-8", errors="replace").splitlines()[-LOG_LINES:]
