"""Runs of the real command line on several processes, started by torchrun's own agent or by bare environment variables as srun does.

The processes are forked from this warm one, so that a launch costs no import of torch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import tiny
from directalign.cli import main as command_line
from directalign.training import loop

Sabotage = Callable[[int, int], None]
"""Called on each process before each update with (rank, number of the update from 0)."""


def write_recipe(folder: Path, tune: str) -> Path:
    """SRPO in its anchored form on a tiny FLUX: 5 updates of 4 prompts, 3 images measured, an average kept."""
    model = folder / "model"
    if not model.exists():
        tiny.write_flux(model)
    (folder / "prompts.txt").write_text(
        "a red star\na blue circle\na green square\na red circle\na blue star\na green star\na photo\n"
    )
    recipe = folder / f"{tune}.yaml"
    recipe.write_text(
        f"""
name: tiny
model: {{family: flux, path: {model}, tune: {tune}, lora: {{rank: 2, alpha: 2}}}}
reward: {{name: clip, path: world:reward}}
method:
  name: srpo
  form: anchored
  anchor: {{reference_updates: 3}}
  control_phrases: {{positive: [Photo], negative: [Render]}}
  noise_levels: {{kind: uniform, sigma_high: 0.9, sigma_low: 0.5, jump: 0.1}}
  branches: denoise
  embedded_guidance: 3.5
rollout: {{num_inference_steps: 2, embedded_guidance: 1.0}}
data: {{prompts: {folder / "prompts.txt"}, batch_size: 4}}
train: {{num_steps: 5, learning_rate: 2.0e-4, max_grad_norm: 1.0, save_every: 2, ema_decay: 0.9}}
evaluate: {{num_samples: 3, batch_size: 2}}
"""
    )
    return recipe


def train(recipe: Path, out: Path, *more: str) -> list[str]:
    """Arguments of the command."""
    return ["train", str(recipe), "--out", str(out), *more]


def run(arguments: Sequence[str]) -> None:
    """The command in this process, without the plan of its memory, which takes longer than all the rest; SystemExit with its code."""
    torch.set_num_threads(1)
    with (
        mock.patch("sys.argv", ["directalign", *arguments]),
        mock.patch("directalign.preflight.plan", lambda run, out: SimpleNamespace(warnings=())),
    ):
        command_line()


def alone(arguments: Sequence[str], log: Path) -> int:
    """The command on a process of its own; its exit code."""
    return ended(started(lambda: run(arguments), log))


def by_command(arguments: Sequence[str], log: Path) -> int:
    """As a user starts it: torchrun, with everything that the command does."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    with log.open("a") as words:
        return subprocess.run(
            [*torchrun, "-m", "directalign", *arguments], stdout=words, stderr=words, check=False
        ).returncode


def by_torchrun(
    arguments: Sequence[str], log: Path, sabotage: Sabotage | None = None, max_restarts: int = 0
) -> int:
    """The command on two processes of torchrun's agent; what they say ends up in `log`. 0 when all went well."""
    return ended(started(lambda: _agent(arguments, sabotage, max_restarts), log))


def by_hand(
    arguments: Sequence[str],
    log: Path,
    sabotage: Sabotage | None = None,
    variables: Callable[[int, int], Mapping[str, str]] | None = None,
) -> list[int]:
    """The command on two processes that know of each other by `variables(rank, port)` alone; their exit codes."""
    return by_hand_with(lambda: _worker(arguments, sabotage), log, variables)


def plain_variables(rank: int, port: int) -> Mapping[str, str]:
    """What every launcher sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def by_hand_with(
    work: Callable[[], object],
    log: Path,
    variables: Callable[[int, int], Mapping[str, str]] = plain_variables,
) -> list[int]:
    """Any work on two such processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def with_variables(rank: int) -> None:
        os.environ.update(variables(rank, port))
        work()

    return [
        ended(child)
        for child in [started(lambda rank=rank: with_variables(rank), log) for rank in range(2)]
    ]


def started(work: Callable[[], object], log: Path) -> int:
    """Do `work` in a forked process whose words are appended to `log`; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        sys.stdout = sys.stderr = log.open("a", buffering=1)
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _agent(arguments: Sequence[str], sabotage: Sabotage | None, max_restarts: int) -> None:
    settings: dict[str, Any] = {
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "127.0.0.1:0",
        "start_method": "fork",
        "max_restarts": max_restarts,
    }
    elastic_launch(LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, **settings), _worker)(
        arguments, sabotage
    )


def _worker(arguments: Sequence[str], sabotage: Sabotage | None) -> None:
    real = loop.train_step

    def train_step(context: loop.TrainContext, step: int, batches: Any) -> dict[str, Any]:
        if sabotage is not None:
            sabotage(context.group.rank, step)
        return real(context, step, batches)

    with mock.patch.object(loop, "train_step", train_step):
        run(arguments)
