"""One process at a time trains in a folder, and a process that was killed leaves it free."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from directalign.train import folder
from directalign.types import DirectAlignError

HOLDER = """import sys; from pathlib import Path; from directalign.train.folder import held
with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(DirectAlignError, match="another process is training in it"), folder.held(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with folder.held(tmp_path) as unlocked:
        assert unlocked is None


def test_where_there_are_no_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with folder.held(tmp_path) as unlocked:
        assert unlocked == f"{tmp_path} cannot be locked (Operation not supported): let no other process train in it meanwhile"
