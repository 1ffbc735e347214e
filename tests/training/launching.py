"""Runs of the real command on several processes, by torchrun's agent or by environment variables.

Processes are forked from this one, so that a launch does not import torch again.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import forked  # noqa: F401  imports what each process would
import tiny
from directalign.cli import main as command_line
from directalign.training import loop
from directalign.training.run_log import TIMINGS

BeforeStep = Callable[[int, int], None]
"""Called on each process before each step with (rank, step from 0)."""


def write_recipe(folder: Path, tune: str) -> Path:
    """Anchored SRPO on a tiny FLUX: 5 steps of 4 prompts, 3 evaluated samples, an EMA."""
    model = folder / "model"
    if not model.exists():
        tiny.write_flux(model)
    (folder / "prompts.txt").write_text(
        "a red star\na blue circle\na green square\na red circle\na blue star\na photo\n"
    )
    recipe = folder / f"{tune}.yaml"
    recipe.write_text(f"""
name: tiny
model: {{architecture: flux, path: {model}, tune: {tune}, lora: {{rank: 2, alpha: 2}}}}
reward: {{name: clip, path: world:reward}}
method:
  name: srpo
  form: anchored
  anchor: {{reference_updates: 3}}
  control_phrases: {{positive: [Photo], negative: [Render]}}
  noise_levels: {{kind: uniform, sigma_high: 0.9, sigma_low: 0.5, jump: 0.1}}
  branches: denoise
  embedded_guidance: 3.5
  kl_beta: 0.5
rollout: {{num_inference_steps: 2, embedded_guidance: 1.0}}
data: {{prompts: {folder / "prompts.txt"}, batch_size: 4}}
train: {{num_steps: 5, learning_rate: 2.0e-4, max_grad_norm: 1.0, save_every: 2, ema_decay: 0.9}}
evaluate: {{num_samples: 3, batch_size: 2}}
""")
    return recipe


def train(recipe: Path, out: Path, *more: str) -> list[str]:
    """Arguments of the command."""
    return ["train", str(recipe), "--out", str(out), *more]


def run(arguments: Sequence[str]) -> None:
    """The command in this process, without the memory estimate; SystemExit with its code."""
    torch.set_num_threads(1)
    with (
        mock.patch("sys.argv", ["directalign", *arguments]),
        mock.patch(
            "directalign.preflight.plan",
            lambda run, out: SimpleNamespace(warnings=(), update_flops=None),
        ),
    ):
        command_line()


def one_process(arguments: Sequence[str], log: Path) -> int:
    """The exit code of the command on one process."""
    return exit_code(fork(lambda: run(arguments), log))


def torchrun(
    arguments: Sequence[str],
    log: Path,
    before_step: BeforeStep | None = None,
    max_restarts: int = 0,
) -> int:
    """The command on two processes of torchrun's agent; 0 when all succeeded."""
    settings: dict[str, Any] = {
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "127.0.0.1:0",
        "start_method": "fork",
        "max_restarts": max_restarts,
    }
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, **settings)
    return exit_code(fork(lambda: elastic_launch(launch, _worker)(arguments, before_step), log))


def _worker(arguments: Sequence[str], before_step: BeforeStep | None) -> None:
    real = loop.train_step

    def train_step(context: loop.TrainContext, step: int, batches: Any) -> dict[str, Any]:
        if before_step is not None:
            before_step(context.group.rank, step)
        return real(context, step, batches)

    with mock.patch.object(loop, "train_step", train_step):
        run(arguments)


def kill_once(step: int, rank: int) -> BeforeStep:
    """SIGKILL for one rank before a step, not after a restart."""

    def before_step(own: int, current: int) -> None:
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if (own, current, restarts) == (rank, step, "0"):
            os.kill(os.getpid(), signal.SIGKILL)

    return before_step


def variables(rank: int, port: int, nodes: int = 1) -> Mapping[str, str]:
    """What every launcher sets, for two processes on each node."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": str(2 * nodes)}
    own["LOCAL_WORLD_SIZE"] = "2"
    return {**own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def processes(work: Callable[[], object], log: Path, nodes: int = 1) -> list[int]:
    """Exit codes of two processes on each node that find each other by environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def with_variables(rank: int) -> None:
        os.environ.update(variables(rank, port, nodes))
        work()

    children = [fork(lambda rank=rank: with_variables(rank), log) for rank in range(2 * nodes)]
    return [exit_code(child) for child in children]


def fork(work: Callable[[], object], log: Path = Path(os.devnull)) -> int:
    """Run `work` in a forked process whose output is appended to `log`; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        sys.stdout = sys.stderr = log.open("a", buffering=1)
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        torch.set_num_threads(1)
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        os._exit(status)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def records(out: Path, *events: str) -> list[dict[str, Any]]:
    """The records of a run without timings, of all events or those named."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in TIMINGS}
        for record in found
        if not events or record["event"] in events
    ]


def kill_and_resume(
    start: Callable[[Path, bool], object], folder: Path, attempts: int
) -> list[Path]:
    """Folders of runs that were killed at random moments, then resumed to their end.

    `start(out, resume)` is first run to its end in `folder / "whole"`. A run is killed soon after
    it has written a random number of records, so that it is neither unborn nor over.
    """
    assert exit_code(fork(lambda: start(folder / "whole", False))) == 0
    total, draws, killed = len(records(folder / "whole")), random.Random(0), 0
    outs = [folder / f"killed-{attempt}" for attempt in range(attempts)]
    for out in outs:
        child = fork(lambda out=out: start(out, False))
        goal, metrics = draws.randrange(total - 1), out / "metrics.jsonl"
        while (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) < goal:
            time.sleep(0.001)
        time.sleep(draws.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        killed += exit_code(child) == -signal.SIGKILL
        resume = (out / "run.yaml").exists()
        assert exit_code(fork(lambda out=out, resume=resume: start(out, resume))) == 0, out
    assert killed > 0
    return outs
