"""Errors, shared options and checks of all commands.

Exit codes: 1 for any error, 2 for an invalid command line (typer's own), 130 for an interruption.
"""

import errno
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ALIKE, SAVED, DirectAlignError, Mistakes

FAILED, INTERRUPTED = 1, 130
REMEDIES = {
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "a part of this path is a file: name another one",
    errno.EISDIR: "name a file, not a folder",
    errno.EACCES: "change its permissions, or name another one",
    errno.EROFS: "name a place that you may write to",
}
"""What to do about errors of files, by number."""
MAX_NUMBER = 1_000_000_000


@contextmanager
def one_line_errors(debug: bool, after_interruption: str = "") -> Iterator[None]:
    """Turn any exception into one line on stderr and an exit code; with `debug` let it through.

    Args:
        after_interruption: how to continue after Ctrl-C, appended to "interrupted".
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _end(f"interrupted{after_interruption}", INTERRUPTED, error)
    except Exception as error:
        if debug:
            raise
        training = sys.modules.get("directalign.training")  # imported if a training was interrupted
        stopped = training is not None and isinstance(error, training.Interrupted)
        _end(_message(error), INTERRUPTED if stopped else FAILED, error)


@contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """Errors inside are the same on all ranks of a machine: the first of them reports them."""
    try:
        yield
    except Exception as error:
        setattr(error, ALIKE, True)
        raise


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _is_reported_by_another(error: BaseException | None) -> bool:
    """Whether another rank of this machine raises the same error."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    while error is not None:
        if getattr(error, ALIKE, False):
            return True
        error = error.__cause__
    return False


def announce(text: str) -> None:
    """Say what begins, before imports that take seconds, to a person at a terminal."""
    if sys.stderr.isatty():
        typer.echo(f"{text} ...", err=True)


def _end(message: str, code: int, cause: BaseException) -> None:
    if _is_reported_by_another(cause):
        raise typer.Exit(code) from cause
    message = "; ".join(filter(None, (message, getattr(cause, SAVED, ""))))
    for line in cause.lines if isinstance(cause, Mistakes) else [message]:
        typer.echo(f"directalign: {' '.join(line.split())}", err=True)
    raise typer.Exit(code) from cause


def _message(error: Exception) -> str:
    from ..io.atomic import AGAIN, is_disk_full

    if isinstance(error, DirectAlignError):
        return str(error)
    if is_disk_full(error):
        file = getattr(error, "filename", None)
        return f"no space left on the disk{f' of {file}' if file else ''}; {AGAIN}"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]}...: longer than any path; give the path of a file"
    if isinstance(error, OSError) and error.filename:
        remedy = REMEDIES.get(error.errno or 0)
        return f"{error.filename}: {error.strerror}{f'; {remedy}' if remedy else ''}"
    if type(error).__name__ == "ValidationError":  # pydantic's, of a section that options made
        return error.errors()[0]["msg"].removeprefix("Value error, ")  # pyright: ignore
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return (
            "out of device memory; set model.tune: lora, model.gradient_checkpointing: true or a "
            "smaller data.batch_size (see directalign check)"
        )
    return (
        f"unexpected {type(error).__name__}: {error}; this is a bug in directalign: please report "
        "it with the output of --debug"
    )


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For a short command: the import of torch and diffusers takes a fifth less time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print the package's log messages from level INFO on stderr, one line each, and no others."""
    logger = logging.getLogger("directalign")
    level, handlers = logger.level, logger.handlers
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


def shared_options(**groups: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Add the parameters of each group to a command.

    A group is a function of options; the command gets its result as the argument of that name.
    """
    parameters = {
        name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()
    }

    def decorate(command: Callable[..., Any]) -> Any:
        own = dict(inspect.signature(command, eval_str=True).parameters)
        debug = own.pop("debug")
        every = [each for name, each in own.items() if name not in groups]
        every += [each for group in parameters.values() for each in group.values()]

        def run(**given: Any) -> None:
            built = {
                name: group(**{option: given.pop(option) for option in parameters[name]})
                for name, group in groups.items()
            }
            command(**built, **given)

        keyword_only = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*every, debug)
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {each.name: each.annotation for each in keyword_only}
        run.__signature__ = inspect.Signature(keyword_only)  # pyright: ignore
        return run

    return decorate


def seed_option(help: str) -> Any:
    """An option for a seed, or several."""

    def checked(given: Any) -> Any:
        from ..config.base import MAX_SEED

        for seed in given if isinstance(given, list | tuple) else [given]:
            if not 0 <= seed <= MAX_SEED:
                raise typer.BadParameter(f"{seed} is no seed: give 0 to {MAX_SEED} (2^64 - 1)")
        return given

    return typer.Option(help=help, callback=checked)


def option(help: str, metavar: str | None = None, *names: str, **settings: Any) -> Any:
    """`typer.Option` with its texts first; numbers with a minimum get a maximum too."""
    if "min" in settings:
        settings.setdefault("max", MAX_NUMBER)
    return typer.Option(*names, help=help, metavar=metavar, **settings)


def flag(name: str, help: str) -> Any:
    """A `typer.Option` with this name only."""
    return typer.Option(name, help=help)


def argument(help: str, metavar: str) -> Any:
    """A required `typer.Argument`."""
    return typer.Argument(help=help, metavar=metavar, show_default=False)


Recipe = Annotated[
    Path,
    argument("A YAML file, or the name of a recipe of the package, such as world_srpo.", "RECIPE"),
]
Overrides = Annotated[
    list[str],
    option(
        "Change one key of the recipe, e.g. train.num_steps=100; {} or null removes a section. "
        "Repeatable.",
        "KEY=VALUE",
        "--set",
    ),
]
Settings = Annotated[
    list[str], typer.Argument(help="As --set.", metavar="[KEY=VALUE]...", show_default=False)
]
RunFolder = Annotated[Path, argument("The output folder of a run.", "DIR")]
Step = Annotated[
    int | None,
    option("Take the checkpoint of this step; default: the run's final weights.", "N", min=0),
]
Strength = Annotated[
    float, option("Of the trained change: 0 is the base model, 1 as trained, at most 10.", "S")
]
Debug = Annotated[bool, flag("--debug", "Print the traceback of an error.")]


def default_out(recipe: Path) -> Path:
    """Output folder of a run without --out: runs/ and the recipe's name."""
    return Path("runs") / recipe.stem


def require_room(out: Path, option: str = "--out") -> None:
    """Raise DirectAlignError for an --out that cannot be written, before the work starts."""
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise DirectAlignError(
            f"{option} {out}: {nearest} is not a folder that you may write to; name another one"
        )


def require_new_file(out: Path) -> None:
    """Raise DirectAlignError for an --out file that exists or cannot be written."""
    if out.exists():
        raise DirectAlignError(f"--out: {out} exists already; name another file")
    require_room(out)


class DroppingStream:
    """A text stream whose writes never raise OSError; after the first one it writes to nowhere."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream, which is flushed: an error belongs to the text that caused it."""
        self._attempt(lambda: (self._stream.write(text), self._stream.flush()))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # the rest of the buffer goes there too
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError) and self._name != "stderr":
                with suppress(OSError):
                    sys.stderr.write(
                        f"warning: {self._name} cannot be written ({error.strerror}); output is "
                        "dropped from here on\n"
                    )


def protect_streams() -> None:
    """Put a `DroppingStream` in place of stdout and stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, DroppingStream):
            setattr(sys, name, DroppingStream(stream, name))
