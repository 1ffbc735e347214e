"""Two processes stop where one does and leave the same weights, each number of processes from what the other kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import launching
import pytest
from test_torchrun import furthest, records

from directalign.io import atomic
from directalign.training import early_stopping

STOP = (
    "--set=evaluate.every=1",
    "--set=stop={judge: score_pos, drift: {color_drift: 0.5, brightness: 0.5}, patience: 1}",
    "--set=train.num_steps=9",
)
HALF = "--set=data.batch_size=2"
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=["full", "lora"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process."""
    folder = tmp_path_factory.mktemp(request.param)
    out = folder / "whole"
    arguments = launching.train(launching.write_recipe(folder, request.param), out, *STOP)
    assert launching.alone(arguments, folder / "log") == 0, (folder / "log").read_text()
    return out


def recipe_of(whole: Path) -> Path:
    return next(whole.parent.glob("*.yaml"))


def end_of(out: Path) -> list[tuple[str, int]]:
    return [
        (record["event"], record["step"])
        for record in records(out)
        if record["event"] in ("stop", "kept")
    ]


def killed_once(own: int, current: int) -> None:
    """Rank 1 dies in the second update, the first time."""
    if (own, current) == (1, 1) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_stops_itself(whole: Path):
    assert [event for event, _ in end_of(whole)] == ["stop", "kept"] and len(
        [r for r in records(whole) if r["event"] == "step"]
    ) < 9


def test_two_stop_at_the_same_update_and_leave_the_same_weights_though_one_is_killed(whole: Path):
    out, words = whole.with_name("two"), whole.with_name("two.log")
    arguments = launching.train(recipe_of(whole), out, *STOP, HALF, "--set=train.save_every=1")
    assert launching.by_torchrun(arguments, words, killed_once, max_restarts=1) == 0, (
        words.read_text()
    )
    assert end_of(out) == end_of(whole) and furthest(out, whole) < TOLERANCE
    assert all(
        atomic.damage(early_stopping.best_path(out, step)) is None
        for step in early_stopping.best_steps(out)
    )


def test_one_leaves_what_two_kept(whole: Path):
    """A run of two that was stopped, finished once more by one."""
    out, words = whole.with_name("two"), whole.with_name("one.log")
    before = (out / "metrics.jsonl").read_bytes()
    assert (
        launching.alone(
            launching.train(recipe_of(whole), out, *STOP, "--set=train.save_every=1", "--resume"),
            words,
        )
        == 0
    ), words.read_text()
    assert (out / "metrics.jsonl").read_bytes() == before and furthest(out, whole) < TOLERANCE
    assert "stopped after step" in words.read_text()
