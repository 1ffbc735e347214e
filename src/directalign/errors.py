"""The errors of the package; without torch, which the report and the arena do not need."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DirectAlignError(ValueError):
    """A mistake that the user can correct: one line with the file or key, its value, and the
    remedy.
    """


class Mistakes(DirectAlignError):
    """Several at once, each of its own line."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class NonFiniteError(DirectAlignError):
    """A loss, gradient or weight is not finite; the optimizer step is skipped."""


ALIKE = "on_all_ranks"
"""Attribute of an exception: every rank raises the same one, and rank 0 reports it."""
SAVED = "saved_as"
"""Attribute of an exception of any class: where the run that it ended can be continued."""


@contextmanager
def named(key: str) -> Iterator[None]:
    """A DirectAlignError raised inside starts with `key`, where the recipe names what is wrong."""
    try:
        yield
    except DirectAlignError as error:
        raise DirectAlignError(f"{key}: {error}") from error


def first_line(error: BaseException) -> str:
    """The first line of another's message; the name of its class if it says nothing."""
    try:
        text = str(error).strip()
    except Exception:  # a message of a user's class
        text = ""
    return (text or type(error).__name__).splitlines()[0][:200]
