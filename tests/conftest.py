"""Every annotation of the package, the experiments and the tools is checked while tests run; one
thread, and no deadline for a slow machine."""

import os
import signal

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["directalign", "experiments", "tools"], "beartype.beartype")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process and those that tests start
# A shell ignores SIGINT for what it starts in the background, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("directalign", deadline=None, max_examples=50)
settings.load_profile("directalign")


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands tests out to others runs none of them and needs no torch."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")
