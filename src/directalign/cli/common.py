"""How a command ends when it cannot go on: one line on stderr and an exit code, the traceback only on request.

Exit codes: 1 for anything that went wrong, 2 for a command line that cannot be read (typer's own), 130 for an interruption.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
    training = sys.modules.get(
        "directalign.train.interrupt"
    )  # loaded if it was a training that stopped
    return (
        INTERRUPTED if training is not None and isinstance(error, training.Interrupted) else FAILED
    )


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


Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A run in YAML: a file, or a name of the package such as world_srpo.", show_default=False)
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, e.g. train.num_steps=100. Repeatable.",
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that a run left.", show_default=False)
]
Debug = Annotated[
    bool, typer.Option("--debug", help="On an error, show where in the code it arose.")
]


def default_out(recipe: Path) -> Path:
    """Where a run goes if nothing is said: runs/ and the recipe's name."""
    return Path("runs") / recipe.stem


def require_room(out: Path) -> None:
    """Refuse an --out that cannot be written, before the work whose result it is to hold.

    Raises: DirectAlignError where the nearest folder that exists is none, or not the user's to write to.
    """
    from ..types import DirectAlignError

    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise DirectAlignError(
            f"--out {out}: {nearest} is not a folder that you may write to; name another one"
        )


def require_new_file(out: Path) -> None:
    """Refuse an --out file that cannot be written or is there already. Raises: DirectAlignError."""
    from ..types import DirectAlignError

    if out.exists():
        raise DirectAlignError(f"--out: {out} exists already; name another file")
    require_room(out)
