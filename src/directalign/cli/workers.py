"""The command of this process in several others at once, each with a `--worker` of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import IO, cast

import typer


def start_worker(worker: object, **env: str) -> subprocess.Popen[str]:
    """The same command with `--worker`, in a process group of its own.

    Ctrl-C reaches this process only, which closes the stdin of the others: see `stop_with_parent`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "directalign", *sys.argv[1:], "--worker", str(worker)],
        env={**os.environ, **env, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def stop_with_parent() -> None:
    """In a worker: once its parent closes its stdin, or ends, the run stops with a checkpoint."""

    def wait() -> None:
        sys.stdin.read()
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def follow(
    workers: Mapping[str, subprocess.Popen[str]], until_failure: bool = False
) -> tuple[str, str] | None:
    """Print the workers' lines, each with its label before, until all have ended.

    The others are stopped after an exception and, with `until_failure`, once one fails, whose label
    and last line are returned.
    """
    last = dict.fromkeys(workers, "")

    def relay(label: str, lines: Iterable[str]) -> None:
        for line in lines:
            last[label] = line.rstrip("\n")
            typer.echo(f"[{label}] {last[label]}")

    readers = [
        threading.Thread(target=relay, args=(label, cast(IO[str], worker.stdout)))
        for label, worker in workers.items()
    ]
    failed: list[str] = []
    try:
        for reader in readers:
            reader.start()
        while any(worker.poll() is None for worker in workers.values()) and not failed:
            time.sleep(0.1)
            failed = [label for label, each in workers.items() if until_failure and each.poll()]
    finally:
        for worker in workers.values():
            cast(IO[str], worker.stdin).close()  # stops what is still running
            worker.wait()
        for reader in readers:
            reader.join()
    return (failed[0], last[failed[0]]) if failed else None
