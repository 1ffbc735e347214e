"""A rank that is gone is noticed and named: by its last words, by its silence, by the loss of the store; one that is done is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import launching
import pytest
from torch.distributed import TCPStore

from directalign.train import watch
from directalign.train.watch import Watch
from directalign.types import DirectAlignError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    monkeypatch.setattr(watch, "BEAT", 0.05)
    yield TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(server: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))


def pair(server: TCPStore) -> tuple[Watch, Callable[[], None]]:
    """The watch of rank 0, which never ends the process, and a way to let rank 1 give a sign of life."""
    other = client(server)
    other.set("rank-1", watch.ALIVE)
    signs = iter(range(1, 10_000))
    return Watch(client(server), 0, 2, "the launcher", silence=10**6, grace=1e6), lambda: other.set("rank-1", f"{watch.ALIVE}{next(signs)}")


def until(found: Callable[[], str | None]) -> str:
    """What is found in the end."""
    for _ in range(400):
        text = found()
        if text is not None:
            return text
        time.sleep(0.02)
    raise AssertionError("nothing was found")


def test_silence_is_counted_from_the_last_sign(server: TCPStore):
    own, sign = pair(server)
    for _ in range(30):
        sign()
        time.sleep(0.02)
        assert own.gone(silence=200) is None
    assert until(lambda: own.gone(silence=3)).startswith("rank 1 is gone: no sign of life for ")
    own.leave()


@pytest.mark.parametrize(("words", "said"), [("out of\nmemory", "rank 1 is gone: out of memory"), ("rank 2 is gone: why", "rank 2 is gone: why")])
def test_last_words_are_passed_on(server: TCPStore, words: str, said: str):
    own, _ = pair(server)
    Watch(client(server), 1, 2, "the launcher").leave(words)
    assert until(own.look_closer) == said
    own.leave()


def test_a_rank_that_is_done_is_not_missed(server: TCPStore):
    own, _ = pair(server)
    Watch(client(server), 1, 2, "the launcher").leave()
    time.sleep(0.5)
    assert own.look_closer() is None
    own.leave()


def test_a_store_that_is_gone_is_its_hosts_end(server: TCPStore):
    own, _ = pair(server)

    def broken(*given: object) -> None:
        raise RuntimeError("Broken pipe")

    own._store = type("Broken", (), {"set": broken, "multi_get": broken})()  # pyright: ignore[reportAttributeAccessIssue]
    assert until(lambda: own.gone(10**6)) == "the launcher is gone: the connection to it is lost"
    own.leave("it is over")


def test_a_rank_that_does_not_come_is_named(server: TCPStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "ARRIVAL", 0.2)
    with pytest.raises(DirectAlignError, match=r"rank 0, 2 of 3 did not come within 0\.2 s"):
        Watch(client(server), 1, 3, "rank 0")


def test_a_process_that_hangs_is_ended_with_the_reason(server: TCPStore, tmp_path: Path):
    """Rank 0 waits for something that never comes; rank 1 goes without a word."""
    log = tmp_path / "log"

    def hang() -> None:
        Watch(client(server), 0, 2, "the launcher", silence=5, grace=0.2)
        time.sleep(300)

    def go() -> None:
        Watch(client(server), 1, 2, "the launcher")
        os._exit(0)

    begun = time.monotonic()
    hanging, gone = launching.started(hang, log), launching.started(go, log)
    assert launching.ended(gone) == 0 and launching.ended(hanging) == 1
    assert log.read_text().startswith("directalign: rank 1 is gone: no sign of life") and time.monotonic() - begun < 60


def test_a_minute_is_enough():
    assert watch.BEAT * watch.SILENCE + watch.GRACE < 60
