"""Every annotation of the package, the experiments and the tools is checked while tests run; one
thread, and no deadline for a slow machine."""

import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any, get_type_hints

import jaxtyping
import pytest
from hypothesis import settings

jaxtyped = jaxtyping.jaxtyped


def checked(made: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """`jaxtyping.jaxtyped`, which takes a multiple of the time of the type checker it calls; the
    checker alone for functions without arrays. (That gives a generator an outer one, which would
    change how a GeneratorExit passes.)"""
    if made is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(made):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = checked(made.__init__, typechecker=typechecker)
        return made
    try:
        hints = str(get_type_hints(made))
    except NameError:
        hints = "jaxtyping."  # it leaves out annotations whose names are not known yet
    if "jaxtyping." in hints or inspect.isgeneratorfunction(made):
        return jaxtyped(made, typechecker=typechecker)
    return typechecker(made)


jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook(["directalign", "experiments", "tools"], "beartype.beartype")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process and those that tests start
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # as the command sets them
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# A shell ignores SIGINT for what it starts in the background, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("directalign", deadline=None, max_examples=50)
settings.load_profile("directalign")


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands tests out to others runs none of them and needs no torch."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")
