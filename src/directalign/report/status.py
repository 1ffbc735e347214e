"""Whether a run is running, stopped, failed or finished, and the command that continues it.

Training writes `status.json` when it starts and when it ends, and holds the folder's lock between
them. A process that is killed writes nothing more: it leaves "running" without the lock.

    {"state": "running", "pid": 4711, "host": "node-1", "processes": 1, "reason": ""}
"""

import json
import os
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.atomic import is_locked, write_text
from .format import cut, number
from .read import RunFiles, read_json

FILE = "status.json"
RUNNING, STOPPED, FAILED, FINISHED = "running", "stopped", "failed", "finished"
KILLED = "its process ended without saving: killed, out of memory, or the machine was restarted"
RECENT = 20
"""Steps whose mean duration predicts the time left."""
LATE_SECONDS, LATE_FACTOR = 120.0, 3.0
"""A page is late after so many seconds and so many times the longest step or measurement."""


@dataclass(frozen=True)
class Status:
    """`step` of `num_steps` (0 if unknown) is the last one recorded, `saved` the newest checkpoint.

    `seconds_left` is known of a running run with steps. `reason` is the error line of a failed
    run, and why a stopped one ended if it was not asked to. `pid` is that of the main process, on
    the machine `host`; 0 and "" if unknown.
    """

    state: str
    step: int
    num_steps: int
    saved: int
    seconds_left: float | None
    late_after: float
    reason: str
    pid: int
    host: str
    command: str

    @property
    def is_running(self) -> bool:
        return self.state == RUNNING

    @property
    def is_resumable(self) -> bool:
        return self.state in (STOPPED, FAILED)


def write_status(folder: Path, state: str, processes: int, reason: str = "") -> None:
    """Record the state of a run whose main process this is."""
    record = {"state": state, "pid": os.getpid(), "host": socket.gethostname()}
    record |= {"processes": processes, "reason": reason}
    write_text(folder / FILE, json.dumps(record, ensure_ascii=False) + "\n")


def status_of(run: RunFiles) -> Status:
    """The state of a run now; one of an earlier version is finished if it has a summary."""
    record = read_json(run.folder / FILE, [], optional=True)
    state, reason = str(record.get("state")), cut(record.get("reason") or "", 1000)
    if state not in (RUNNING, STOPPED, FAILED, FINISHED):
        state = FINISHED if run.summary else STOPPED
    elif state == RUNNING and not is_locked(run.folder, unknown=True):
        state, reason = STOPPED, KILLED
    step = int(run.steps[-1]["step"]) if run.steps else 0
    num_steps = int(number(run.setting("train", "num_steps")) or 0)
    seconds = [found for each in run.steps + run.measured if (found := number(each.get("seconds")))]
    left, taken = None, [value for _, value in run.curve("seconds")]
    if state == RUNNING and taken:
        measured = [value for _, value in run.measured_curve("seconds")[1:]]
        every = int(number(run.setting("evaluate", "every")) or 0)
        left = seconds_left(step, num_steps, every, taken, measured)
    names = [each.name.removeprefix("step-") for each in run.folder.glob("checkpoints/step-*")]
    processes = int(number(record.get("processes")) or 1)
    launcher = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    return Status(
        state=state,
        step=step,
        num_steps=num_steps,
        saved=max((int(name) for name in names if name.isdecimal()), default=0),
        seconds_left=left,
        late_after=LATE_SECONDS + LATE_FACTOR * max(seconds, default=LATE_SECONDS),
        reason=reason,
        pid=int(number(record.get("pid")) or 0),
        host=cut(record.get("host") or "", 100),
        command=shlex.join([*launcher, "directalign", *resume_arguments(run.folder)]),
    )


def resume_arguments(folder: Path) -> list[str]:
    """The arguments of `directalign` that continue the run in a folder."""
    return ["train", str(folder / "run.yaml"), "--out", str(folder), "--resume"]


def seconds_left(
    step: int, num_steps: int, every: int, steps: Sequence[float], measured: Sequence[float]
) -> float:
    """How long the rest of a run takes after `step`, measurements `every` so many steps included.

    `steps` and `measured` are the seconds of the steps, at least one, and of the measurements
    between them so far.
    """
    recent = steps[-RECENT:]
    left = num_steps // every - step // every if every else 0
    pause = sum(measured) / len(measured) if measured else 0.0
    return (num_steps - step) * sum(recent) / len(recent) + left * pause
