"""Closed pipes and full disks behind the standard streams never end a command."""

import io
import os
import subprocess
import sys

import pytest
import typer

from directalign.cli.common import DroppingStream, protect_streams

COMMAND = [sys.executable, "-m", "directalign", "schema"]


@pytest.mark.parametrize(
    ("stdout", "said"),
    [("closed pipe", ""), ("/dev/full", "warning: stdout cannot be written (No space left")],
)
def test_a_command_whose_output_cannot_be_written_ends_with_0(stdout, said):
    reader, writer = os.pipe()
    os.close(reader)
    target = writer if stdout == "closed pipe" else os.open(stdout, os.O_WRONLY)
    done = subprocess.run(COMMAND, stdout=target, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(target)
    assert done.returncode == 0 and done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def test_the_streams_pass_on_what_can_be_written(monkeypatch):
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    monkeypatch.setattr(sys, "stderr", plain)
    protect_streams()
    protect_streams()
    assert isinstance(sys.stdout, DroppingStream) and not sys.stdout.isatty()
    print("one")
    typer.echo("two", err=True)
    assert plain.getvalue() == "one\ntwo\n"
