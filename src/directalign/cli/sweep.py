"""`directalign sweep`: every seed with every combination of values, resumable."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from ..errors import DirectAlignError
from .common import (
    Debug,
    Overrides,
    Recipe,
    Settings,
    one_line_errors,
    option,
    without_garbage_collection,
)

if TYPE_CHECKING:
    from ..sweep import SweepRun


def sweep(
    recipe: Recipe,
    settings: Settings = [],
    overrides: Overrides = [],
    seeds: Annotated[
        str, option("Seeds of every combination, e.g. 0,1,2; default: the recipe's.", "N,N,...")
    ] = "",
    grid: Annotated[
        list[str],
        option(
            "Values of a key, e.g. train.learning_rate=1e-4,3e-4. Repeatable: every combination.",
            "KEY=VALUE,...",
        ),
    ] = [],
    gpus: Annotated[
        str, option("Train on these GPUs, one run on each at a time, e.g. 0,1.", "N,N,...")
    ] = "",
    out: Annotated[
        Path | None, option("Folder of the runs; default: runs/RECIPE_sweep.", "DIR")
    ] = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    debug: Debug = False,
) -> None:
    """Train RECIPE with every seed and every combination of values, one folder per run.

    Finished runs are kept, interrupted ones resumed: after a stop, give the same command again.
    """
    with one_line_errors(debug, "; the same command continues"):
        out = out or Path("runs") / f"{recipe.stem}_sweep"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise DirectAlignError(
                "sweep: trains each run in one process: start it without torchrun"
            )
        if not seeds and not grid:
            raise DirectAlignError(
                "sweep: nothing to vary; give --seeds 0,1,2 or --grid KEY=VALUE,..."
            )
        typer.echo(f"directalign: preparing {recipe} in {out}")
        with without_garbage_collection():
            import torch

            from ..sweep import runs_of  # slow imports: diffusers

        if gpus and not torch.cuda.is_available():
            typer.echo(
                "warning: --gpus: no CUDA GPU is here: these processes share the CPU", err=True
            )

        numbers = _numbers("--seeds", seeds)
        runs = runs_of(recipe, [*overrides, *settings], numbers, grid, out)
        if gpus and worker is None:
            _on_gpus(_numbers("--gpus", gpus))
        else:
            _train(runs, worker or 0, is_worker=worker is not None)
        if worker is None:
            _finish(runs, out)


def _numbers(name: str, text: str) -> list[int]:
    try:
        found = [int(each) for each in text.split(",")] if text else []
    except ValueError:
        found = [-1]
    if any(number < 0 for number in found):
        raise DirectAlignError(f"{name} {text}: give whole numbers from 0 on, e.g. 0,1,2")
    return found


def _train(runs: Sequence[SweepRun], first: int, is_worker: bool) -> None:
    """Train all runs in this process."""
    from ..preflight import plan
    from ..sweep import sweep as train_all

    if is_worker:
        threading.Thread(target=_stop_with_parent, daemon=True).start()

    def prepare(run: SweepRun) -> None:
        typer.echo(f"{run.folder}:")
        for warning in plan(run.settings, run.folder).warnings:
            typer.echo(f"warning: {warning}", err=True)

    for run, state in train_all(runs, first % len(runs), prepare):
        typer.echo(f"{run.folder}: {state}")


def _stop_with_parent() -> None:
    """The parent holds the other end of stdin; at its end the run stops with a checkpoint."""
    sys.stdin.read()
    signal.raise_signal(signal.SIGTERM)


def _on_gpus(gpus: Sequence[int]) -> None:
    """The same command on each GPU, in a process of its own; its lines come with the GPU before.

    Ctrl-C reaches this process only, which closes the stdin of the others: see `_stop_with_parent`.
    """
    workers = [_worker(place, gpu) for place, gpu in enumerate(gpus)]
    readers = [
        threading.Thread(target=_relay, args=(f"[GPU {gpu}] ", worker.stdout))
        for gpu, worker in zip(gpus, workers, strict=True)
    ]
    for each in readers:
        each.start()
    try:
        for each in readers:
            each.join()
    finally:
        for worker in workers:
            cast(IO[str], worker.stdin).close()  # stops what is still running
            worker.wait()


def _worker(place: int, gpu: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "directalign", *sys.argv[1:], "--worker", str(place)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _relay(prefix: str, lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(prefix + line.rstrip("\n"))


def _finish(runs: Sequence[SweepRun], out: Path) -> None:
    """Write the page of the finished runs. Raises: DirectAlignError if a run is not finished."""
    from ..report import write_page

    left = [run.folder for run in runs if not (run.folder / "summary.json").exists()]
    if len(left) < len(runs):
        typer.echo(write_page(out))
    if left:
        raise DirectAlignError(
            f"{len(left)} of {len(runs)} runs are not finished, first {left[0]}: see their lines "
            "above; the same command continues"
        )
    words = ["directalign", "compare", str(out), "--out", str(out / "comparison")]
    if len({run.settings.seed for run in runs}) > 1:
        words += ["--group-by", "seed"]
    typer.echo(f"next: {shlex.join(words)}")
