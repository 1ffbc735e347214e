"""One process at a time trains in a folder, and a process that was killed leaves it free."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from directalign.training import run_folder
from directalign.types import DirectAlignError

HOLDER = """import sys; from pathlib import Path; from directalign.training.run_folder import locked
with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with (
            pytest.raises(DirectAlignError, match="another process is training in it"),
            run_folder.locked(tmp_path),
        ):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with run_folder.locked(tmp_path):
        pass


def test_a_file_system_without_locks_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with run_folder.locked(tmp_path):
        assert "cannot be locked" in caplog.text and "Operation not supported" in caplog.text
