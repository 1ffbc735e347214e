"""The arena over HTTP: joining, answering, restarting, results for the owner, blinding."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from arena_runs import SECRETS, Running, joining, number_of, running, write_comparison
from PIL import Image
from typer.testing import CliRunner

from directalign.arena.records import AXES
from directalign.cli import app


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(
        tmp_path_factory.mktemp("server") / "source", [f"prompt {index}" for index in range(6)]
    )


@pytest.fixture(scope="module")
def server(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(source, tmp_path_factory.mktemp("database") / "votes.sqlite") as found:
        yield found


def vote(client: httpx.Client, request: str, task: str, choice: str | None) -> dict:
    answer = client.post(
        "/api/vote",
        json={"annotator": number_of(client), "request": request, "task": task, "choice": choice},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_nothing_tells_who_made_an_image(server: Running):
    with server.joined("Blind") as client:
        received = [client.get("/"), client.get("/api/state")]
        state = received[-1].json()
        received += [
            client.get(f"/image/{token}") for task in state["next"] for token in task["images"]
        ]
        received += [
            client.get(f"/static/{name}")
            for name in ("vote.js", "asking.js", "outbox.js", "arena.css", "arena.svg")
        ]
    assert all(answer.status_code == 200 for answer in received)
    for answer in received:
        everything = answer.content + repr(answer.headers).encode()
        assert not any(
            secret.encode() in everything for secret in (*SECRETS, "Label of", "images/", ".sqlite")
        )


def test_images_are_bare_pixels_of_one_size(server: Running):
    with server.joined("Pixels") as client:
        task = client.get("/api/state").json()["next"][0]
        contents = [client.get(f"/image/{token}").content for token in task["images"]]
    assert all(
        re.findall(rb"(IHDR|IDAT|IEND|tEXt|eXIf|iTXt|zTXt|tIME)", content)
        == [b"IHDR", b"IDAT", b"IEND"]
        for content in contents
    )
    assert (
        {Image.open(io.BytesIO(content)).size for content in contents}
        == {(task["width"], task["height"])}
        == {(24, 24)}
    )


def test_a_vote_counts_once_and_can_be_taken_back(server: Running):
    with (
        server.joined("Voter") as client,
        contextlib.closing(sqlite3.connect(database_of(server))) as stored,
    ):
        task = client.get("/api/state").json()["next"][0]["task"]
        for choice in ("left", "left", "left"):
            state = vote(client, "retried-request", task, choice)
        assert (
            state["done"] == 1
            and state["last"]["task"] == task
            and task not in [each["task"] for each in state["next"]]
        )
        assert vote(client, "second-thoughts", task, "right")["done"] == 1
        assert vote(client, "undo-request", task, None)["done"] == 0
        said = stored.execute(
            "SELECT said FROM answers JOIN annotators USING (annotator)"
            " WHERE name = 'Voter' ORDER BY answer"
        ).fetchall()
        counted = stored.execute(
            "SELECT count(*) FROM counted JOIN annotators USING (annotator) WHERE name = 'Voter'"
        ).fetchone()
    assert said == [("left",), ("right",), (None,)] and counted == (0,)


def database_of(server: Running) -> str:
    words = list(server.process.args)  # type: ignore[arg-type]
    return str(words[words.index("--out") + 1])


def test_the_own_link_goes_on_on_another_device(server: Running):
    with server.joined("Mover") as client:
        state = client.get("/api/state").json()
        done = vote(client, "before-moving", state["next"][0]["task"], "tie")
    with server.visitor() as other:
        welcome = other.get(f"/me/{state['link']}")
        assert "Welcome back" in welcome.text and "Mover" in welcome.text
        assert (
            "samesite=strict" in welcome.headers["set-cookie"].lower()
            and "httponly" in welcome.headers["set-cookie"].lower()
        )
        assert other.get("/api/state").json() == done


def test_a_name_is_taken_once(server: Running):
    with server.joined("Twice"), server.visitor() as other:
        again = other.post("/api/join", json=joining(" twice "))
    assert again.status_code == 409 and "in use" in again.json()["error"]


def test_joining_can_be_repeated_by_who_did_it_alone(server: Running):
    """The same request gets the same link again, another one with that name is refused."""
    posted = joining("Lost Answer")
    with server.visitor() as client, server.visitor() as other:
        links = [
            client.post("/api/join", json=posted).json()["link"],
            other.post("/api/join", json={**posted, "name": "LOST  answer"}).json()["link"],
        ]
        assert (
            links[0] == links[1]
            and client.get("/api/state").json() == other.get("/api/state").json()
        )
        assert (
            other.post("/api/join", json={**posted, "name": "Another"}).json()["link"] != links[0]
        )
        for request in ("0" * 32, "", "short", None):
            assert other.post("/api/join", json={**posted, "request": request}).status_code in (
                409,
                422,
            )
        del posted["request"]
        assert other.post("/api/join", json=posted).status_code == 422


def test_an_answer_is_never_taken_for_that_of_whoever_has_the_session_now(server: Running):
    """Two people on one computer: the first one's tab is open when the second opens a link."""
    with server.joined("First") as client:
        task, first = client.get("/api/state").json()["next"][0]["task"], number_of(client)
        second = client.post("/api/join", json=joining("Second")).json()["link"]
        answer = client.post(
            "/api/vote",
            json={"annotator": first, "request": "of-the-first", "task": task, "choice": "left"},
        )
        assert answer.status_code == 401 and "another annotator's session" in answer.json()["error"]
        assert client.get("/api/state").json()["done"] == 0 and str(
            number_of(client)
        ) == second.split(".")[0] != str(first)


def test_only_the_owner_sees_results(server: Running):
    with server.joined("Curious") as client, server.owner() as owner:
        assert (
            client.get("/results").status_code
            == client.get("/results/answers.csv").status_code
            == 403
        )
        page = owner.get("/results")
        assert page.status_code == 200 and "Label of SECRETMODEL-a" in page.text
        names = set(re.findall(r'href="/results/([^"]+)"', page.text))
        assert names == {"answers.csv", "history.csv", "items.csv", "numbers.csv"}
        assert all(owner.get(f"/results/{name}").text.count("\n") >= 1 for name in names)
        assert (
            owner.get("/api/state").status_code == 401
            and owner.get("/results/votes.sqlite").status_code == 404
        )


def test_ratings_end_to_end_and_offline(source: Path, tmp_path: Path):
    database = tmp_path / "ratings.sqlite"
    with running(
        source, database, "--mode", "rate", "--items", "2", "--annotators", "Ann, Ben"
    ) as server:
        with server.visitor() as stranger:
            assert (
                stranger.get("/").status_code
                == stranger.post("/api/join", json=joining("Cem")).status_code
                == 403
            )
        for link in server.links[:2]:
            with server.visitor() as client:
                client.get(link)
                rate_everything(client)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "ratings.sqlite",
        "ratings.sqlite.lock",
    ]
    result = CliRunner().invoke(
        app, ["arena", "results", str(database), "--out", str(tmp_path / "found")]
    )
    assert result.exit_code == 0, result.output
    rows = (tmp_path / "found" / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2 * 2 * 2 * 4 and rows[0].startswith("annotator,item,model,axis,level")
    assert (tmp_path / "found" / "results.html").stat().st_size > 2000


def rate_everything(client: httpx.Client) -> None:
    state = client.get("/api/state").json()
    assert state["total"] == 2
    for task in state["next"]:
        for image in task["images"]:
            for axis in AXES:
                posted = {
                    "annotator": number_of(client),
                    "request": f"{image[:9]}-{axis}",
                    "task": task["task"],
                    "image": image,
                    "axis": axis,
                    "level": "good",
                }
                state = client.post("/api/rating", json=posted).json()
    assert state["done"] == 2 and state["next"] == []


def test_a_kill_in_mid_vote_loses_nothing_acknowledged(source: Path, tmp_path: Path):
    acknowledged: dict[str, list[str]] = {}

    def keep_voting(client: httpx.Client, name: str) -> None:
        """Each of the six prompts over and over, until the server is gone."""
        acknowledged[name] = []
        tasks = [each["task"] for each in client.get("/api/state").json()["next"]]
        for number in range(10_000):
            request = f"{name}-{number:06d}"
            try:
                vote(client, request, tasks[number % len(tasks)], ("left", "right")[number % 2])
            except httpx.TransportError:
                return
            acknowledged[name].append(request)

    voters = contextlib.ExitStack()
    with voters, running(source, tmp_path / "votes.sqlite") as server:
        clients = {
            f"voter{number}": voters.enter_context(server.joined(f"voter{number}"))
            for number in range(4)
        }
        threads = [
            threading.Thread(target=keep_voting, args=(client, name))
            for name, client in clients.items()
        ]
        for thread in threads:
            thread.start()
        while sum(map(len, acknowledged.values())) < 60:
            threading.Event().wait(0.01)
        server.kill()
        for thread in threads:
            thread.join()
        with (
            running(source, tmp_path / "votes.sqlite", port=server.port) as again,
            again.owner() as owner,
        ):
            history = owner.get("/results/history.csv").text
            states = {
                name: client.get("/api/state").json() for name, client in clients.items()
            }  # the sessions hold
            table = owner.get("/results/answers.csv").text
    for name, requests in acknowledged.items():
        stored = re.findall(rf"{name}-\d+", history)
        assert stored[: len(requests)] == requests and len(stored) - len(requests) in (
            0,
            1,
        )  # one may have been on its way
        assert states[name]["done"] == table.count(f"{name},") == min(5, len(stored))
