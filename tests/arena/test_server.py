"""The arena over HTTP: joining, answering, results for the owner, blinding, many people, a kill."""

import asyncio
import contextlib
import io
import re
import resource
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from arena_servers import NO_TLS, SECRETS, Server, joining, number_of, running, served, vote
from PIL import Image

from directalign.arena import session
from directalign.arena.records import ArenaError
from directalign.arena.session import open_arena

VOTERS, VOTES = 60, 3


def test_nothing_received_names_a_model(server):
    with server.joined("Blind") as client:
        received = [client.get("/"), client.get("/api/state")]
        tasks = received[-1].json()["next"]
        images = [client.get(f"/image/{token}") for task in tasks for token in task["images"]]
        for name in ("vote.js", "asking.js", "outbox.js", "arena.css", "arena.svg"):
            received.append(client.get(f"/static/{name}"))
    for answer in (*received, *images):
        assert answer.status_code == 200
        everything = answer.content + repr(answer.headers).encode()
        for secret in (*SECRETS, "Label of", "images/", ".sqlite"):
            assert secret.encode() not in everything
    for answer in images:
        chunks = re.findall(rb"(IHDR|IDAT|IEND|tEXt|eXIf|iTXt|zTXt|tIME)", answer.content)
        assert chunks == [b"IHDR", b"IDAT", b"IEND"]
        assert Image.open(io.BytesIO(answer.content)).size == (24, 24)
    assert {(task["width"], task["height"]) for task in tasks} == {(24, 24)}


def test_a_vote_counts_once_and_can_be_taken_back(server):
    with server.joined("Voter") as client:
        task = client.get("/api/state").json()["next"][0]["task"]
        for _ in range(3):
            state = vote(client, "retried-request", task, "left")
        assert state["done"] == 1 and state["last"]["task"] == task
        assert task not in [each["task"] for each in state["next"]]
        assert vote(client, "second-thoughts", task, "right")["done"] == 1
        assert vote(client, "undo-request", task, None)["done"] == 0
    history = [row["said"] for row in server.table("history.csv") if row["annotator"] == "Voter"]
    assert history == ["left", "right", ""]
    assert "Voter" not in {row["annotator"] for row in server.table("answers.csv")}


def test_a_request_repeated_with_another_answer_is_refused(server):
    """It would be acknowledged but not stored."""
    with server.joined("Reuser") as client:
        first, second = [each["task"] for each in client.get("/api/state").json()["next"]][:2]
        vote(client, "used-request", first, "left")
        for task, choice in ((second, "left"), (first, "right"), (first, None)):
            posted = {"annotator": number_of(client), "request": "used-request", "task": task}
            answer = client.post("/api/vote", json=posted | {"choice": choice})
            assert answer.status_code == 409 and "another answer" in answer.json()["error"]
        assert vote(client, "used-request", first, "left")["done"] == 1


def test_the_personal_link_continues_on_another_device(server):
    with server.joined("Mover") as client:
        state = client.get("/api/state").json()
        first = client.get(f"/me/{state['link']}").text
        assert "Welcome, " in first and "Welcome back" not in first, "nothing is answered yet"
        done = vote(client, "before-moving", state["next"][0]["task"], "tie")
    with server.visitor() as other:
        welcome = other.get(f"/me/{state['link']}")
        assert "Welcome back" in welcome.text and "Mover" in welcome.text
        cookie = welcome.headers["set-cookie"].lower()
        assert "samesite=strict" in cookie and "httponly" in cookie
        assert other.get("/api/state").json() == done


def test_joining_can_be_repeated_only_by_the_same_request(server):
    posted = joining("Lost Answer")
    with server.visitor() as client, server.visitor() as other:

        def join(**changes: str | None) -> httpx.Response:
            return other.post("/api/join", json={**posted, "is_other_person": True, **changes})

        link = client.post("/api/join", json=posted).json()["link"]
        assert join(name="LOST  answer").json()["link"] == link
        assert client.get("/api/state").json() == other.get("/api/state").json()
        assert join(name="Another").json()["link"] != link
        taken = join(request="0" * 32)
        assert taken.status_code == 409 and "in use" in taken.json()["error"]
        assert [join(request=wrong).status_code for wrong in ("", "short", None)] == [422] * 3
        del posted["request"]
        assert join().status_code == 422


def test_an_invitation_opened_again_is_the_same_person(source, tmp_path, monkeypatch):
    with served(source, tmp_path / "votes.sqlite", host="0.0.0.0") as server:
        invitation = server.arena.signer.token("invitation")
        with server.joined("Ann", invitation) as client, server.visitor() as stranger:
            again, new = (each.get(f"/invitation/{invitation}").text for each in (client, stranger))
            assert "Ann" in again and "<form" not in again and "<form" in new
            assert client.get("/api/session").json() == {"name": "Ann"}
            assert stranger.get("/api/session").json() == {"name": None}
            answers = [client.post("/api/join", json=joining(n, invitation)) for n in ("ANN", "Bo")]
            assert [answer.status_code for answer in answers] == [200, 409]
            assert list(server.arena.names.values()) == ["Ann"]
            assert "<form" in client.get("/another", params={"invitation": invitation}).text
            assert stranger.get("/another").status_code == 403
            other = {**joining("Bo", invitation), "is_other_person": True}
            assert client.post("/api/join", json=other).status_code == 200
            monkeypatch.setattr(session, "MAX_ANNOTATORS", 2)
            full = stranger.post("/api/join", json=joining("Cem", invitation))
            assert full.status_code == 403 and "joined already" in full.json()["error"]
        with server.owner() as owner:
            assert "one person on two devices" in owner.get("/results").text
            server.arena.invite(["Ann", "Bo"])
            assert "one person on two devices" not in owner.get("/results").text


def test_an_answer_does_not_count_for_the_session_of_another_annotator(server):
    """Two people on one computer: the first one's tab is open when the second opens a link."""
    with server.joined("First") as client:
        task, first = client.get("/api/state").json()["next"][0]["task"], number_of(client)
        posted = {**joining("Second"), "is_other_person": True}
        second = client.post("/api/join", json=posted).json()["link"]
        posted = {"annotator": first, "request": "of-the-first", "task": task, "choice": "left"}
        answer = client.post("/api/vote", json=posted)
        assert answer.status_code == 401 and "another annotator's session" in answer.json()["error"]
        assert client.get("/api/state").json()["done"] == 0
        assert str(number_of(client)) == second.split(".")[0] != str(first)


def test_only_the_owner_sees_results(server):
    with server.joined("Curious") as client, server.owner() as owner:
        vote(client, "of-curious", client.get("/api/state").json()["next"][0]["task"], "left")
        for path in ("/results", "/results/answers.csv"):
            assert client.get(path).status_code == 403
        page = owner.get("/results")
        assert page.status_code == 200 and "Label of SECRETMODEL-a" in page.text
        names = set(re.findall(r'href="/results/([^"]+)"', page.text))
        assert names == {"answers.csv", "history.csv", "items.csv", "numbers.csv"}
        assert all(owner.get(f"/results/{name}").text.count("\n") >= 1 for name in names)
        assert owner.get("/api/state").status_code == 401
        assert owner.get("/results/votes.sqlite").status_code == 404


def test_only_invited_annotators_take_part_also_after_a_restart(source, tmp_path):
    def status_of(link: str) -> int:
        with server.visitor() as client:
            welcome = client.get(f"/me/{link}").status_code
            states = {client.get("/api/state").status_code for _ in range(2)}
            assert states == {200 if welcome == 200 else 401}
        return welcome

    with served(source, tmp_path / "votes.sqlite") as server:
        links = server.arena.invite(["Ann", "Ben"])
        assert [status_of(link) for link in links.values()] == [200, 200]
        with server.visitor() as ben:
            ben.get(f"/me/{links['Ben']}")
            task = ben.get("/api/state").json()["next"][0]["task"]
            assert server.arena.invite(["Ann"]) == {"Ann": links["Ann"]}
            posted = {"annotator": 2, "request": "of-the-removed", "task": task, "choice": "left"}
            assert ben.post("/api/vote", json=posted).status_code == 403
    with served(source, tmp_path / "votes.sqlite") as server:
        assert server.arena.invite([]) == {"Ann": links["Ann"]}
        assert [status_of(link) for link in links.values()] == [200, 403]
        with server.visitor() as stranger:
            assert stranger.post("/api/join", json=joining("Zed")).status_code == 403
            assert server.arena.invite([], everybody=True) == {}
            assert stranger.post("/api/join", json=joining("Zed")).status_code == 200
        assert status_of(links["Ben"]) == 200
        assert server.table("history.csv") == []


@contextlib.contextmanager
def file_size_limit(most: int) -> Iterator[None]:
    """As on a full disk, no file of this process can grow beyond `most` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_or_a_locked_database_refuses_in_one_line(source, tmp_path):
    with file_size_limit(20_000), pytest.raises(ArenaError, match=r"cannot be created.*free space"):
        open_arena(tmp_path / "full.sqlite", [source])
    assert [left.name for left in tmp_path.iterdir()] == ["full.sqlite.lock"]
    file = tmp_path / "votes.sqlite"
    with served(source, file) as server, server.joined("Ann") as client:
        task = client.get("/api/state").json()["next"][0]["task"]

        def status_of(number: int) -> int:
            posted = {"annotator": 1, "request": f"request-{number}", "task": task}
            return client.post("/api/vote", json=posted | {"choice": "left"}).status_code

        with file_size_limit(120_000):
            full = [status_of(number) for number in range(40)]
        assert set(full) == {200, 507}
        server.arena.store._connection.execute("PRAGMA busy_timeout = 50")
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert status_of(40) == 503
        assert server.log and all(
            line.startswith(("refused 507", "refused 503")) for line in server.log
        )
        assert len(server.log) == full.count(507) + 1
        assert {status_of(number) for number in range(41)} == {200}
        assert len(server.table("history.csv")) == 41


async def vote_thrice(server: Server, number: int) -> list[str]:
    """Join, fetch the first image, vote, repeat one request; the requests acknowledged."""
    acknowledged = []
    async with httpx.AsyncClient(base_url=server.address, timeout=120, verify=NO_TLS) as client:
        (await client.post("/api/join", json=joining(f"crowd {number}"))).raise_for_status()
        state = (await client.get("/api/state")).raise_for_status().json()
        (await client.get(f"/image/{state['next'][0]['images'][0]}")).raise_for_status()
        for turn in range(VOTES):
            request, task = f"crowd-{number}-{turn}", state["next"][0]["task"]
            posted = {"annotator": number_of(client), "request": request, "task": task}
            posted["choice"] = ("left", "right", "tie")[number % 3]
            state = (await client.post("/api/vote", json=posted)).raise_for_status().json()
            acknowledged.append(request)
        again = (await client.post("/api/vote", json=posted)).raise_for_status().json()
        assert again["done"] == state["done"] == VOTES
    return acknowledged


async def vote_at_once(server: Server) -> list[str]:
    everybody = await asyncio.gather(*(vote_thrice(server, number) for number in range(VOTERS)))
    return [request for requests in everybody for request in requests]


def test_a_crowd_and_a_kill_lose_nothing_and_store_nothing_twice(source, tmp_path):
    acknowledged: dict[str, list[str]] = {}

    def keep_voting(client: httpx.Client, name: str) -> None:
        """Some of the prompts over and over, until the server is gone."""
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
        crowd = asyncio.run(vote_at_once(server))
        assert len(crowd) == len(set(crowd)) == VOTERS * VOTES
        tasks = Counter(row["item"] for row in server.table("answers.csv"))
        assert max(tasks.values()) <= 1.5 * VOTERS * VOTES / 6  # spread over the prompts
        assert not any("refused" in line or "Traceback" in line for line in server.log)
        names = [f"voter{number}" for number in range(4)]
        clients = {name: voters.enter_context(server.joined(name)) for name in names}
        threads = [
            threading.Thread(target=keep_voting, args=each[::-1]) for each in clients.items()
        ]
        for thread in threads:
            thread.start()
        while sum(map(len, acknowledged.values())) < 60:
            threading.Event().wait(0.01)
        server.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
        with running(source, tmp_path / "votes.sqlite", port=server.port) as again:
            history = [row["request"] for row in again.table("history.csv")]
            counted = Counter(row["annotator"] for row in again.table("answers.csv"))
            done = {name: one.get("/api/state").json()["done"] for name, one in clients.items()}
    assert sorted(request for request in history if "crowd" in request) == sorted(crowd)
    for name, requests in acknowledged.items():
        stored = [request for request in history if request.startswith(f"{name}-")]
        assert stored[: len(requests)] == requests
        assert len(stored) - len(requests) in (0, 1)  # one may have been on its way
        assert done[name] == counted[name] == min(5, len(stored))
