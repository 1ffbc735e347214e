"""The errors of the package; without torch, which the report and the arena do not need."""


class DirectAlignError(ValueError):
    """A mistake that the user can correct: one line with the file or key, its value, and the
    remedy.
    """


class NonFiniteError(DirectAlignError):
    """A loss, gradient or weight is not finite; the optimizer step is skipped."""


SAVED = "saved_as"
"""Attribute of an exception of any class: where the run that it ended can be continued."""
