"""What goes wrong with those who show a run: refused before it starts, or said once while it goes on untouched."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_stubs as stubs
from directalign.preflight.checks import check_trackers

from directalign import config
from directalign.training import run_log, trackers
from directalign.types import DirectAlignError


class Scripted:
    """Remembers what it was told; `on_record` may fail or wait."""

    has_history = False

    def __init__(self, on_record: Callable[[int], None] = lambda step: None) -> None:
        self.told: list[Any] = []
        self._on_record = on_record

    def log_values(self, values: Mapping[str, float | str], step: int) -> None:
        self._on_record(step)
        self.told.append((step, dict(values)))

    def log_image(self, pixels: trackers.Pixels, step: int) -> None:
        self.told.append(("picture", step))

    def log_summary(self, found: Mapping[str, Any]) -> None:
        self.told.append(("summary", dict(found)))

    def close(self, finished: bool) -> None:
        self.told.append(("close", finished))


# --- while the run goes on ----------------------------------------------------------------------------------------------


def test_a_thread_of_its_own_tells_everything_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tracker = Scripted(lambda step: time.sleep(0.01))
    written = run_log.RunLog(tmp_path, -1, trackers=[trackers.BackgroundTracker(tracker, "it", "")])
    for step in range(5):
        written.write({"event": "step", "step": step, "loss": 0.5})
        written.grid(step, stubs.torch.zeros(1, 3, 4, 4))
    written.summary({"a": 1})
    written.close()
    wanted: list[Any] = [
        each for step in range(5) for each in ((step, {"step/loss": 0.5}), ("picture", step))
    ]
    assert (
        tracker.told == [*wanted, ("summary", {"a": 1}), ("close", True)] and caplog.messages == []
    )


def test_a_failure_is_said_once_and_the_records_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def fail(step: int) -> None:
        if step >= 2:
            raise ConnectionError("no route\nand more")

    tracker = Scripted(fail)
    written = run_log.RunLog(
        tmp_path, -1, trackers=[trackers.BackgroundTracker(tracker, "it", "Do this.")]
    )
    for step in range(5):
        written.write({"event": "step", "step": step})
        time.sleep(0.01)
    written.close()
    assert caplog.messages == [
        "it failed (ConnectionError: no route); the run continues without it, metrics.jsonl is complete. Do this."
    ]
    assert [record["step"] for record in run_log.read(tmp_path)] == [0, 1, 2, 3, 4] and [
        step for step, _ in tracker.told
    ] == [0, 1]


def test_one_that_hangs_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    free = threading.Event()
    hanging = trackers.BackgroundTracker(
        Scripted(lambda step: free.wait() and None), "it", "", timeout=0.05, final_timeout=0.1
    )
    for step in range(3):
        hanging.log_values({}, step)
    assert caplog.messages == []
    time.sleep(0.1)
    hanging.log_values({}, 3)
    assert len(caplog.messages) == 1 and "made no progress for 0 s" in caplog.messages[0]
    hanging.close(True)
    free.set()
    late = trackers.BackgroundTracker(
        Scripted(lambda step: free.wait() and None), "it", "", final_timeout=0.05
    )
    free.clear()
    late.log_values({}, 0)
    late.close(True)
    assert len(caplog.messages) == 2 and "at the end" in caplog.messages[1]
    free.set()


def test_who_has_history_is_not_told_again(tmp_path: Path):
    forgetful, mindful = Scripted(), Scripted()
    mindful.has_history = True
    run_log.RunLog(tmp_path, -1).write({"event": "step", "step": 1, "loss": 1.0})
    written = run_log.RunLog(tmp_path, 1, trackers=[forgetful, mindful])
    written.grid(1, stubs.torch.zeros(1, 3, 4, 4), is_replay=True)
    written.grid(2, stubs.torch.zeros(1, 3, 4, 4))
    written.close()
    assert forgetful.told == [
        (1, {"step/loss": 1.0}),
        ("picture", 1),
        ("picture", 2),
        ("close", False),
    ]
    assert mindful.told == [("picture", 2), ("close", False)]


@pytest.fixture
def wandb_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """W&B with a key, and nobody at its address."""
    import wandb

    for name, value in {
        "HOME": str(tmp_path),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "k" * 40,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(trackers.WANDB_SETTINGS, "init_timeout", 1)
    wandb.teardown()  # it reads its environment once
    yield wandb
    wandb.teardown()


def with_wandb(folder: Path, mode: str) -> config.RunConfig:
    run = stubs.make_run(folder / "prompts.txt", num_steps=4)
    return config.RunConfig.model_validate(
        {**run.model_dump(mode="json"), "trackers": {"wandb": {"project": "p", "mode": mode}}}
    )


def test_a_network_that_is_down_at_the_start_makes_an_offline_run(
    tmp_path: Path, wandb_quietly: Any, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    stubs.start(with_wandb(tmp_path, "online"), out)
    said = [line for line in capsys.readouterr().out.splitlines() if "Weights & Biases" in line]
    assert len(said) == 2 and "cannot be reached" in said[0] and "wandb sync" in said[1]
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    assert file.stat().st_size > 0 and len(run_log.read(out)) == 7


def test_a_service_that_dies_in_mid_run_is_said_and_a_resume_makes_up_for_it(
    tmp_path: Path, wandb_quietly: Any, capsys: pytest.CaptureFixture[str]
):
    run, out = with_wandb(tmp_path, "offline"), tmp_path / "out"

    def kill(step: int) -> None:
        if step == 2 and not (out / "killed").exists():
            (out / "killed").touch()
            found = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"],
                capture_output=True,
                text=True,
            ).stdout.split()
            assert found
            for process in found:
                os.kill(int(process), signal.SIGKILL)

    stubs.start(run, out, on_step=kill)
    warnings = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("warning: Weights & Biases")
    ]
    assert len(warnings) == 1 and "--resume" in warnings[0] and "wandb sync" in warnings[0]
    assert len(run_log.read(out)) == 7
    with contextlib.suppress(ConnectionError):
        wandb_quietly.teardown()
    stubs.start(run, out, resume=True)
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    assert file.stat().st_size > 0 and "warning" not in capsys.readouterr().out


def test_one_that_cannot_be_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(trackers, "open_wandb", fail)
    opened = trackers.open_trackers(with_wandb(tmp_path, "offline"), tmp_path, ["x"])
    assert len(opened) == 1 and "cannot be opened (RuntimeError: disk on fire)" in caplog.text
    opened[0].log_values({"a/b": 1.0}, 1)
    opened[0].log_image(np.zeros((4, 4, 3), np.uint8), 1)
    opened[0].close(True)


# --- before the run starts ----------------------------------------------------------------------------------------------


def asking(folder: Path, **track: Any) -> config.RunConfig:
    return config.RunConfig.model_validate(
        {**stubs.make_run(folder / "prompts.txt").model_dump(mode="json"), "trackers": track}
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wandb", "pip install 'directalign[wandb]'"),
        ("trackio", "pip install 'directalign[trackio]'"),
    ],
)
def test_a_package_that_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str
):
    monkeypatch.setitem(sys.modules, name, None)
    run = asking(tmp_path, **{name: {"project": "p"}})
    with pytest.raises(DirectAlignError, match=f"trackers.{name}") as refused:
        check_trackers(run, is_here=True)
    assert line in str(refused.value)
    findings, doubts = check_trackers(run, is_here=False)
    assert findings == [] and len(doubts) == 1 and line in doubts[0]


def test_wandb_online_wants_a_login_from_the_environment(
    tmp_path: Path, wandb_quietly: Any, monkeypatch: pytest.MonkeyPatch
):
    run = asking(tmp_path, wandb={"project": "p"})
    assert check_trackers(run, is_here=True)[0] == [("W&B", "online, project p")]
    monkeypatch.delenv("WANDB_API_KEY")
    wandb_quietly.teardown()
    with pytest.raises(DirectAlignError, match="wandb login"):
        check_trackers(run, is_here=True)
    assert check_trackers(
        asking(tmp_path, wandb={"project": "p", "mode": "offline"}), is_here=True
    )[0]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + "k" * 40)
    assert check_trackers(run, is_here=True)[0]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login\nuser nonsense x")
    with pytest.raises(DirectAlignError, match="cannot be read"):
        check_trackers(run, is_here=True)


def test_trackio_stays_on_this_machine_unless_the_recipe_names_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    local, space = (
        asking(tmp_path, trackio={"project": "p"}),
        asking(tmp_path, trackio={"project": "p", "space": "me/there"}),
    )
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert check_trackers(local, is_here=True)[0] == [("trackio", "on this machine, project p")]
    with pytest.raises(DirectAlignError, match="hf auth login"):
        check_trackers(space, is_here=True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    assert check_trackers(space, is_here=True)[0] == [("trackio", "me/there, project p")]
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/else")
    with pytest.raises(DirectAlignError, match="TRACKIO_SPACE_ID is set"):
        check_trackers(local, is_here=True)


def test_nothing_is_imported_that_no_recipe_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    assert check_trackers(asking(tmp_path), is_here=True) == ([], [])
    (board,) = trackers.open_trackers(asking(tmp_path), tmp_path, ["x"])
    board.close(True)
    assert not (tmp_path / "tracked.json").exists()
    assert trackers.open_trackers(asking(tmp_path, tensorboard=False), tmp_path, ["x"]) == []


@pytest.mark.parametrize(
    ("track", "key"),
    [
        ({"wandb": {"project": "a/b"}}, "trackers.wandb.project"),
        ({"trackio": {"project": "p", "space": "x"}}, "trackers.trackio.space"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, track: dict[str, Any], key: str):
    with pytest.raises(ValueError, match=key):
        asking(tmp_path, **track)
