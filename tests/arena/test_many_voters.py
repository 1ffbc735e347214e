"""200 people at once on one server: no error, and every vote is there afterwards."""

from __future__ import annotations

import asyncio
import csv
import io
from pathlib import Path

import httpx
from arena_runs import NO_TLS, Running, joining, number_of, running, write_comparison

VOTERS, VOTES = 200, 3


async def one_voter(server: Running, number: int) -> list[str]:
    """Join, look at the first images, vote, repeat one request; the requests acknowledged."""
    acknowledged = []
    async with httpx.AsyncClient(base_url=server.address, timeout=120, verify=NO_TLS) as client:
        (await client.post("/api/join", json=joining(f"voter {number}"))).raise_for_status()
        state = (await client.get("/api/state")).raise_for_status().json()
        (await client.get(f"/image/{state['next'][0]['images'][0]}")).raise_for_status()
        for turn in range(VOTES):
            request, task = f"voter-{number}-{turn}", state["next"][0]["task"]
            posted = {
                "annotator": number_of(client),
                "request": request,
                "task": task,
                "choice": ("left", "right", "tie")[number % 3],
            }
            state = (await client.post("/api/vote", json=posted)).raise_for_status().json()
            acknowledged.append(request)
        again = (await client.post("/api/vote", json=posted)).raise_for_status().json()
        assert again["done"] == state["done"] == VOTES
    return acknowledged


async def everybody(server: Running) -> list[str]:
    requests = await asyncio.gather(*(one_voter(server, number) for number in range(VOTERS)))
    return [request for each in requests for request in each]


def test_two_hundred_at_once(tmp_path: Path):
    source = write_comparison(tmp_path / "source", [f"prompt {index}" for index in range(30)])
    with running(source, tmp_path / "votes.sqlite") as server:
        acknowledged = asyncio.run(everybody(server))
        with server.owner() as owner:
            history = list(csv.DictReader(io.StringIO(owner.get("/results/history.csv").text)))
            counted = list(csv.DictReader(io.StringIO(owner.get("/results/answers.csv").text)))
    assert len(acknowledged) == VOTERS * VOTES == len(set(acknowledged))
    assert sorted(row["request"] for row in history) == sorted(acknowledged)
    assert (
        len(counted) == len({(row["annotator"], row["item"]) for row in counted}) == VOTERS * VOTES
    )
    shares = [sum(row["item"] == str(item) for row in counted) for item in range(30)]
    assert max(shares) <= 2 * VOTERS * VOTES / 30  # spread, though all asked at the same moment
    assert [line for line in server.log if "refused" in line or "Traceback" in line] == []
