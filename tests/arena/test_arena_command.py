"""The command: its messages at start and end, and its errors."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from arena_runs import running, write_comparison
from typer.testing import CliRunner

import comparison_folders
from directalign.arena.sources import read_sources
from directalign.cli import app, arena


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(
        tmp_path_factory.mktemp("command") / "source", [f"prompt {index}" for index in range(3)]
    )


def said(*words: object) -> str:
    """The one line with which a command gives up."""
    result = CliRunner().invoke(app, ["arena", *map(str, words)])
    assert (
        result.exit_code == 1
        and result.output.startswith("directalign: ")
        and result.output.count("\n") == 1
    ), result.output
    return result.output


def test_a_missing_library_is_named_with_its_remedy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'directalign[arena]'" in said(source, "--out", tmp_path / "a.sqlite")
    assert not any(tmp_path.iterdir())


def test_results_need_no_server_library(source: Path, tmp_path: Path):
    blocked = (
        "import sys; sys.modules.update(fastapi=None, uvicorn=None, torch=None);"
        "from directalign.arena import results, session"
    )
    assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 0


@pytest.mark.parametrize("names", ["", " ", ", ,"])
def test_names_that_name_nobody_do_not_open_the_arena_to_everybody(
    source: Path, tmp_path: Path, names: str
):
    assert "holds no name" in said(source, "--out", tmp_path / "a.sqlite", "--annotators", names)


def test_a_port_in_use_is_named(source: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = said(source, "--out", tmp_path / "a.sqlite", "--port", port)
    assert (
        line == f"directalign: --host 127.0.0.1 --port {port}: cannot listen there "
        "(Address already in use); name another one, --port 0 takes a free one\n"
    )


def test_an_interruption_before_there_is_a_database_promises_none(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arena, "_require_server", interrupted)
    result = CliRunner().invoke(app, ["arena", str(source), "--out", str(tmp_path / "a.sqlite")])
    assert (result.exit_code, result.output) == (130, "directalign: interrupted\n")


def test_it_says_what_is_asked_and_leaves_one_file(source: Path, tmp_path: Path):
    """After SIGTERM; after Ctrl-C see test_server."""
    with running(source, tmp_path / "a.sqlite", "--items", "2") as server, server.joined("Ann"):
        assert server.process.stdout is not None
        summary = server.process.stdout.readline()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 130
    assert (
        "vote: 2 prompts and seeds, 2 models, 2 questions per annotator" in summary
        and str(tmp_path / "a.sqlite") in summary
    )
    assert "interrupted; all answers are in" in "".join(server.log) and "Traceback" not in "".join(
        server.log
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.sqlite",
        "a.sqlite.lock",
    ]  # nothing left beside it to be forgotten in a copy


def test_prompts_that_a_model_lacks_are_counted(tmp_path: Path):
    source = write_comparison(tmp_path / "source", ["one", "two", "three"])
    lines = (source / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (source / "results.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    found = read_sources([source])
    assert (len(found.items), found.left_out) == (2, 1)


def test_control_prompts_of_a_comparison_are_not_asked(tmp_path: Path):
    source = comparison_folders.write_comparison(
        tmp_path / "source", prompts=comparison_folders.PROMPTS[:3], control_prompts=2, size=32
    )
    found = read_sources([source])
    assert (
        len(found.items) == 6
        and found.left_out == 0
        and not any(item.prompt.startswith("Anime") for item in found.items.values())
    )
