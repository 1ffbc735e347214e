"""`kill -9` at random moments, then resume: the weights are the undisturbed run's, bit for bit, ten times of ten.

The victims are forked from this warm process, so a kill costs a fraction of a second instead of an import of torch.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import train_stubs as stubs

from directalign.training import checkpoint

TIMES = 10


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a child process without a word; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        torch.set_num_threads(1)
        work()
        status = 0
    finally:
        os._exit(status)


def finished(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_ten_of_ten(tmp_path: Path, tune: str):
    run = stubs.make_run(
        tmp_path / "prompts.txt",
        tune=tune,
        num_steps=12,
        save_every=2,
        sample_every=6,
        ema_decay=0.9,
    )
    start = time.perf_counter()
    assert finished(forked(lambda: stubs.start(run, tmp_path / "whole"))) == 0
    duration = time.perf_counter() - start
    wanted = (tmp_path / "whole" / "lora.safetensors").read_bytes()

    moments, interrupted = random.Random(tune), 0
    for attempt in range(TIMES):
        out = tmp_path / f"killed-{attempt}"
        child = forked(lambda out=out: stubs.start(run, out))
        time.sleep(moments.uniform(0.1, 0.95) * duration)
        os.kill(child, signal.SIGKILL)
        interrupted += finished(child) == -signal.SIGKILL
        resume = (out / "run.yaml").exists()
        assert (
            finished(forked(lambda out=out, resume=resume: stubs.start(run, out, resume))) == 0
        ), f"attempt {attempt}"
        assert (out / "lora.safetensors").read_bytes() == wanted, f"attempt {attempt}"
        assert not list((out / "checkpoints").glob(".partial-*"))
    assert interrupted > 0
    assert len(checkpoint.all_of(tmp_path / "whole" / "checkpoints")) == 3
