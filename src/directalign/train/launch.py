"""How this process was started, and which one of how many it is: by torchrun, by Slurm's srun, or alone.

torchrun says so itself (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) and comes first. Under srun the same is
read from the job step: its first node is where the processes meet, at a port that follows from the number of the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..types import DirectAlignError

FIRST_PORT, NUM_PORTS = 20_000, 20_000
"""The ports that jobs are spread over."""


@dataclass(frozen=True)
class Launch:
    """`rank` of `size` processes, the `local_rank`-th on its machine; they meet at `address`:`port`.

    `is_hosted`: the process that started them keeps the meeting place, otherwise rank 0 does. `attempt` counts restarts.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    is_hosted: bool = False
    attempt: int = 0


def launched(environ: Mapping[str, str]) -> Launch:
    """What the environment says. Raises DirectAlignError for a variable that is missing or not a number."""
    if int(environ.get("WORLD_SIZE", "1")) > 1:
        return _by_torchrun(environ)
    if "WORLD_SIZE" not in environ and int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # in a batch script, but for its steps, it is not set
        return _by_slurm(environ)
    return Launch()


def _by_torchrun(environ: Mapping[str, str]) -> Launch:
    return Launch(
        rank=_number(environ, "RANK"),
        size=_number(environ, "WORLD_SIZE"),
        local_rank=_number(environ, "LOCAL_RANK"),
        address=_text(environ, "MASTER_ADDR"),
        port=_number(environ, "MASTER_PORT"),
        is_hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _by_slurm(environ: Mapping[str, str]) -> Launch:
    job = _number(environ, "SLURM_JOB_ID") + int(environ.get("SLURM_STEP_ID", "0"))
    return Launch(
        rank=_number(environ, "SLURM_PROCID"),
        size=_number(environ, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environ, "SLURM_LOCALID"),
        address=environ.get("MASTER_ADDR") or first_host(_text(environ, "SLURM_STEP_NODELIST")),
        port=int(environ.get("MASTER_PORT") or FIRST_PORT + job % NUM_PORTS),
    )


def first_host(nodes: str) -> str:
    """The first machine of a Slurm list: `gpu-a` of `gpu-a,gpu-b`, `node07` of `node[07-09,12],gpu-a`."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if found is None:
        raise DirectAlignError(f"SLURM_STEP_NODELIST: {nodes!r} names no machine: set MASTER_ADDR to the name of the first one")
    return "".join(piece or "" for piece in found.groups())


def _text(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise DirectAlignError(f"{name} is not set, though several processes were started: launch with torchrun or srun (docs/scaling.md)")
    return environ[name]


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _text(environ, name)
    if not text.isdigit():
        raise DirectAlignError(f"{name} is {text!r}, not a number: launch with torchrun or srun (docs/scaling.md)")
    return int(text)
