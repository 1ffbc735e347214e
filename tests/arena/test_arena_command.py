"""The command: its messages at start and end, its errors, and results without a server."""

import signal
import socket
import subprocess
import sys

import httpx
import pytest
from arena_servers import joining, number_of, running
from typer.testing import CliRunner

from directalign.arena.records import AXES
from directalign.cli import app, arena


def error_of(*words: object) -> str:
    """The one line with which a command fails."""
    result = CliRunner().invoke(app, ["arena", *map(str, words)])
    assert result.exit_code == 1 and result.output.startswith("directalign: ")
    assert result.output.count("\n") == 1, result.output
    return result.output


def test_a_missing_library_is_named_with_its_remedy(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'directalign[arena]'" in error_of(source, "--out", tmp_path / "a.sqlite")
    assert not any(tmp_path.iterdir())


def test_results_need_neither_server_library_nor_torch():
    blocked = "import sys; sys.modules.update(fastapi=None, uvicorn=None, torch=None);"
    code = f"{blocked} from directalign.arena import results, session"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("names", ["", " ", ", ,"])
def test_an_empty_list_of_annotators_is_refused(source, tmp_path, names):
    options = "--out", tmp_path / "a.sqlite", "--annotators", names
    assert "holds no name" in error_of(source, *options)


def test_a_port_in_use_is_named(source, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_of(source, "--out", tmp_path / "a.sqlite", "--port", port)
    assert f"--host 127.0.0.1 --port {port}: cannot listen there (Address already in use)" in line
    assert "--port 0 takes a free one" in line


def test_an_interruption_before_there_is_a_database_promises_none(source, tmp_path, monkeypatch):
    def interrupted(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arena, "require", interrupted)
    result = CliRunner().invoke(app, ["arena", str(source), "--out", str(tmp_path / "a.sqlite")])
    assert (result.exit_code, result.output) == (130, "directalign: interrupted\n")


def rate_everything(client: httpx.Client) -> None:
    state = client.get("/api/state").json()
    assert state["total"] == 2
    for task in state["next"]:
        for image in task["images"]:
            for axis in AXES:
                posted = {"annotator": number_of(client), "request": f"{image[:9]}-{axis}"}
                posted |= {"task": task["task"], "image": image, "axis": axis, "level": "good"}
                state = client.post("/api/rating", json=posted).json()
    assert state["done"] == 2 and state["next"] == []


def test_ratings_end_to_end(source, tmp_path):
    """Invited annotators rate; Ctrl-C; the same command and SIGTERM; results without a server."""
    database, found = tmp_path / "a.sqlite", tmp_path / "found"
    options = ["--mode", "rate", "--items", "2", "--annotators", "Ann, Ben"]
    with running(source, database, *options) as server:
        assert server.process.stdout is not None
        summary = server.process.stdout.readline()
        with server.visitor() as stranger:
            assert stranger.get("/").status_code == 403
            assert stranger.post("/api/join", json=joining("Cem")).status_code == 403
        for link in server.links:
            with server.visitor() as client:
                client.get(link)
                rate_everything(client)
        assert server.stop(signal.SIGINT) == 130
    assert "rate: 2 prompts and seeds, 2 models, 2 questions per annotator" in summary
    assert str(database) in summary
    with running(source, database, *options, port=server.port) as again:
        assert again.links == server.links
        assert again.stop(signal.SIGTERM) == 130
    for log in (server.log, again.log):
        assert "interrupted; all answers are in" in "".join(log)
        assert "Traceback" not in "".join(log)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.sqlite", "a.sqlite.lock"]
    result = CliRunner().invoke(app, ["arena", "results", str(database), "--out", str(found)])
    assert result.exit_code == 0, result.output
    rows = (found / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2 * 2 * 2 * 4 and rows[0].startswith("annotator,item,model,axis,level")
    assert (found / "results.html").stat().st_size > 2000
