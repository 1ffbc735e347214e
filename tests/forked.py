"""Processes forked from this one, so that the real command does not import torch again."""

import gc
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # else the first optimizer of each process imports it, in more than a second
import torch.utils.tensorboard  # as the first tracker would

from directalign.cli import main
from directalign.report.page import PAGES

for each in PAGES.list_templates(extensions=["j2"]):
    PAGES.get_template(each)  # compiled here, not by each process


def popen(
    args: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
) -> "subprocess.Popen[Any]":
    """subprocess.Popen of `python -m directalign WORDS`, which forks and runs the command."""
    words = [str(each) for each in args if each != "-u"]
    assert words[:3] == [sys.executable, "-m", "directalign"], words
    variables = dict(os.environ if env is None else env)

    def command() -> None:
        os.environ.clear()
        os.environ.update(variables)
        sys.argv = ["directalign", *words[3:]]
        main()

    return process(command, **options)


def process(work: Callable[[], object], **options: Any) -> "subprocess.Popen[Any]":
    """`work` in a forked process with the options of subprocess.Popen."""
    return subprocess.Popen(["forked"], preexec_fn=lambda: _run(work), **options)  # never executed


MODULE = SimpleNamespace(
    Popen=popen, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT
)
"""What a module that starts `python -m directalign` needs of subprocess."""


def _run(work: Callable[[], object]) -> None:
    """End this process with `work`; of the open files it keeps the standard streams alone."""
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in (int(path.name) for path in list(Path("/dev/fd").iterdir())):
            if each > 2:
                os.dup2(nothing, each)  # not closed: objects of this process have the number
        for each in (logging.root, *logging.root.manager.loggerDict.values()):
            getattr(each, "handlers", []).clear()  # their streams are those of the tests
        gc.freeze()
        gc.enable()  # subprocess has switched it off
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
        torch.set_num_threads(1)
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
