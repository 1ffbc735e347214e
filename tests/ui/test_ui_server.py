"""The page of runs over HTTP: who may use it, what it refuses, and what it knows of processes."""

import json
import os
import signal
import time

import httpx
import pytest
from typer.testing import CliRunner
from ui_servers import commanded, served

from directalign.cli import app
from directalign.io.atomic import exclusive
from directalign.report.status import FILE, write_status
from directalign.ui import runs as ui_runs
from directalign.web.security import Refused
from synthetic_run import write_run

BROWSER = {"accept": "text/html"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Three runs: finished, killed, and running in this process."""
    folder = tmp_path_factory.mktemp("ui") / "my runs"
    for name in ("finished", "killed", "läuft"):
        write_run(folder / name)
    for name in ("killed", "läuft"):
        (folder / name / "summary.json").unlink()
        write_status(folder / name, "running", processes=1)
    with exclusive(folder / "läuft", "training in it"), served(folder) as found:
        yield found


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_runs_and_their_states(server):
    with server.visitor() as browser:
        home = browser.get("/").text
        assert home.index("läuft") < home.index("finished") and "/run/l%C3%A4uft" in home
        assert [f"<b>{word}</b>" in home for word in ("Running", "Stopped", "Finished")] == [
            True
        ] * 3
        assert home.count("n = 256") == 3, "the number of samples stands beside every change"
        page = browser.get("/run/killed").text
        assert "its process ended without saving" in page and "/api/resume" in page
        assert page.count("<figure>") == 4 + 3  # the main metrics and the numbers of the steps
        part = browser.get("/part/run/finished")
        again = {"if-none-match": part.headers["etag"]}
        assert browser.get("/part/run/finished", headers=again).status_code == 304
        picture = browser.get("/sample/finished/10/3")
        assert picture.headers["content-type"] == "image/png" and len(picture.content) > 100


def test_runs_that_were_measured_on_other_pairs_are_listed_apart(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name)
    with served(tmp_path) as server, server.visitor() as browser:
        assert "<h2>" not in browser.get("/").text
        recipe = tmp_path / "b" / "run.yaml"
        recipe.write_text(recipe.read_text().replace("prompts: world", "prompts: mine.txt"))
        fewer = tmp_path / "c" / "metrics.jsonl"
        fewer.write_text(fewer.read_text().replace('"n": 256', '"n": 32'))
        home = browser.get("/").text
        for pairs in ("256 pairs from mine.txt", "256 pairs from world", "32 pairs from world"):
            assert home.count(f"<h2>Photo rate on {pairs}</h2>") == 1


def test_what_does_not_exist_is_not_found(server):
    paths = ("/run/none", "/run/..%2F..", "/sample/finished/11/0", "/sample/finished/10/99")
    paths += ("/static/server.py", "/new?recipe=..%2Fsecret.yaml", "/report/finished", "/sample/a")
    with server.visitor() as browser:
        for path in paths:
            assert browser.get(path).status_code == 404, path
        refused(browser.post("/api/resume", json={"run": "../x"}), 404, "no run of this name")
        refused(browser.post("/api/stop", json={"run": "finished"}), 409, "is not running")
        refused(browser.post("/api/resume", json={"run": "läuft"}), 409, "running already")
        refused(browser.post("/api/resume", json={"run": "finished"}), 409, "is finished")
        (server.runs.folder / "photos").mkdir()
        posted = {"text": browser_recipe(), "changes": {}}
        for name in ("finished", "photos"):
            found = browser.post("/api/start", json={**posted, "name": name})
            refused(found, 409, "choose another name")
        for name in ("", "..", "a/b", "a.", "a\nb"):
            refused(browser.post("/api/start", json={**posted, "name": name}), 422, "a name has")


def browser_recipe() -> str:
    return (ui_runs.RECIPES / "world_srpo_lora.yaml").read_text(encoding="utf-8")


def test_other_sites_and_other_hosts_are_refused(server):
    with server.visitor() as browser:
        stop = {"run": "läuft"}
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            refused(browser.post("/api/stop", json=stop, headers=headers), 403, "another site")
        form = browser.post(
            "/api/stop", content=json.dumps(stop), headers={"content-type": "text/plain"}
        )
        assert form.status_code == 415
        assert browser.get("/", headers={"host": "evil.example"}).status_code == 400
        policy = browser.get("/").headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy


def test_elsewhere_the_token_is_needed_for_everything(tmp_path):
    write_run(tmp_path / "runs" / "a")
    with served(tmp_path / "runs", "0.0.0.0") as server, server.visitor() as owner:
        with server.visitor() as stranger:
            for path in ("/", "/run/a", "/part/runs", "/new", "/sample/a/10/0", "/report/a"):
                refused(stranger.get(path), 403, "open the link")
            refused(stranger.post("/api/stop", json={"run": "a"}), 403, "open the link")
            refused(stranger.get("/open/" + "0" * 32, headers=BROWSER), 403, "not the link")
        assert owner.get(server.link, follow_redirects=True).status_code == 200
        assert owner.get("/run/a").status_code == 200


def test_a_run_that_cannot_start_says_why_and_can_be_changed(tmp_path):
    with served(tmp_path / "runs") as server, server.visitor() as browser:
        text = browser_recipe().replace("path: world:flux", "path: nowhere/at/all")
        posted = {"text": text, "changes": {"train.num_steps": "0"}, "name": "broken"}
        answer = browser.post("/api/start", json=posted)
        assert answer.status_code == 422 and "1 setting needs" in answer.json()["error"]
        assert not (tmp_path / "runs" / "broken").exists()
        posted["changes"] = {}
        assert browser.post("/api/start", json=posted).json() == {"page": "/run/broken"}
        end = time.monotonic() + 240
        while "Starting" in (page := browser.get("/part/run/broken").text):
            assert time.monotonic() < end
            time.sleep(0.3)
        assert "<b>Failed</b> at step 0" in page and "nowhere/at/all" in page
        assert "nowhere/at/all" in browser.get("/new?recipe=run:broken").text


def test_the_command_prints_its_link_and_a_token_for_other_machines(tmp_path):
    with commanded(tmp_path / "new") as link:
        assert httpx.get(link).status_code == 200
    with commanded(tmp_path / "new", "--host", "0.0.0.0") as link:
        assert "/open/" in link


@pytest.mark.parametrize(("windows", "sent"), [(True, 77), (False, signal.SIGTERM)])
def test_stop_sends_one_signal_and_no_second(tmp_path, monkeypatch, windows, sent):
    write_run(tmp_path / "runs" / "a")
    write_status(tmp_path / "runs" / "a", "running", processes=1)
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(ui_runs, "WINDOWS", windows)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 77, raising=False)
    monkeypatch.setattr(os, "kill", lambda *given: signals.append(given))
    runs = ui_runs.Runs(tmp_path / "runs")
    with exclusive(tmp_path / "runs" / "a", "training in it"):
        assert [runs.stop("a").status.state for _ in range(2)] == ["stopping"] * 2
    assert signals == [(os.getpid(), sent)]
    assert runs.get("a").status.state == "stopped"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"pid": 4711, "host": "elsewhere"}, "it trains on elsewhere; stop it there"),
        ({"pid": 0}, "cannot be reached"),
        ({"pid": -1}, "cannot be reached"),
        ({"pid": os.getpid()}, "cannot be reached"),
    ],
)
def test_a_process_that_is_not_the_runs_gets_no_signal(tmp_path, monkeypatch, record, words):
    write_run(tmp_path / "runs" / "a")
    file = tmp_path / "runs" / "a" / FILE
    file.write_text(json.dumps({"state": "running", **record}))
    os.utime(file, (0, 0))  # older than every process
    monkeypatch.setattr(os, "kill", lambda *given: pytest.fail(f"signal {given}"))
    runs = ui_runs.Runs(tmp_path / "runs")
    with exclusive(tmp_path / "runs" / "a", "training in it"):
        with pytest.raises(Refused, match=words):
            runs.stop("a")
        assert runs.get("a").status.state == "running"


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    with served(tmp_path / "runs") as server, server.visitor() as browser:
        (tmp_path / "runs").rmdir()
        refused(browser.get("/"), 500, "No such file or directory")


def test_a_run_or_a_file_in_place_of_a_folder_of_runs_is_refused(tmp_path):
    run = write_run(tmp_path / "runs" / "a")
    reasons = {run: f"name the folder it is in, {run.parent}", run / "run.yaml": "File exists"}
    for place, reason in reasons.items():
        found = CliRunner().invoke(app, ["ui", str(place), "--port", "0"])
        assert found.exit_code == 1 and found.stderr.startswith(f"directalign: {place}: ")
        assert reason in found.stderr and found.stderr.count("\n") == 1
