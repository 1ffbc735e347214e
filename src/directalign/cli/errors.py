"""How a command ends when it cannot go on: one line on stderr and an exit code, the traceback only on request.

Exit codes: 1 for anything that went wrong, 2 for a command line that cannot be read (typer's own), 130 for an interruption.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

FAILED, INTERRUPTED = 1, 130


@contextmanager
def one_line_errors(debug: bool, after_interruption: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into one line and an exit code; with `debug` let it pass.

    Args:
        after_interruption: what the user can do after Ctrl-C, appended to the word on the interruption.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _end(f"interrupted{after_interruption}", INTERRUPTED, error)
    except Exception as error:
        if debug:
            raise
        _end(_message(error), _exit_code(error), error)


def _end(message: str, code: int, cause: BaseException) -> None:
    typer.echo(f"directalign: {' '.join(message.split())}", err=True)
    raise typer.Exit(code) from cause


def _exit_code(error: Exception) -> int:
    training = sys.modules.get("directalign.train.interrupt")  # loaded if it was a training that stopped
    return INTERRUPTED if training is not None and isinstance(error, training.Interrupted) else FAILED


def _message(error: Exception) -> str:
    from ..types import DirectAlignError

    if isinstance(error, DirectAlignError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk{f' of {error.filename}' if error.filename else ''}; free some, then go on with --resume"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, not worth importing torch for
        return "out of device memory; set model.tune: lora, model.gradient_checkpointing: true or a smaller data.batch_size (see directalign check)"
    return f"unexpected {type(error).__name__}: {error}; this is a fault of directalign: please report it with the output of --debug"
