"""TensorBoard, W&B and trackio contain what metrics.jsonl does, read back from their own files.

And their failures: refused before the run starts, or reported once while training continues.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_stubs as stubs
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from directalign import config
from directalign.preflight.checks import check_trackers
from directalign.training import run_log, trackers
from directalign.types import DirectAlignError

STORE = Path(tempfile.gettempdir()) / f"trackio-{os.getpid()}"
os.environ["TRACKIO_DIR"] = str(STORE)  # trackio reads it once, when it is imported
NO_NETWORK = pytest.mark.usefixtures("no_network")
GRID = torch.zeros(1, 3, 4, 4)

Values = set[tuple[str, int, float]]


@pytest.fixture(scope="module", autouse=True)
def _store():
    yield
    shutil.rmtree(STORE, ignore_errors=True)


@pytest.fixture(scope="module")
def no_network(tmp_path_factory):
    """No host name is resolved, though logins exist everywhere."""
    resolved: list[str] = []

    def refuse(host: Any, *rest: Any, **more: Any) -> Any:
        resolved.append(str(host))
        raise socket.gaierror(f"no network in tests: {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_TOKEN", "hf_secret")
        patch.setenv("WANDB_API_KEY", "s" * 40)
        yield
    assert resolved == []


def with_trackers(folder: Path, given: dict[str, Any], **train: Any) -> config.RunConfig:
    run = stubs.make_run(folder / "prompts.txt", **train).model_dump(mode="json")
    return config.RunConfig.model_validate({**run, "trackers": given})


def offline(folder: Path, project: str, **train: Any) -> config.RunConfig:
    wandb = {"project": project, "mode": "offline", "tags": ["a", "b"]}
    return with_trackers(folder, {"wandb": wandb, "trackio": {"project": project}}, **train)


# --- reading back ---------------------------------------------------------------------------------


def wandb_records(out: Path, kind: str) -> list[Any]:
    """Records of the one .wandb file: 32 KiB blocks of (checksum, length, kind), as in LevelDB."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    content, place, piece, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        head = content[place : place + 7]
        _, length, part = struct.unpack("<IHB", head) if left >= 7 else (0, 0, 0)
        if part == 0:
            place += left
            continue
        piece += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(piece))
            piece = b""
    return [getattr(r, kind) for r in found if r.WhichOneof("record_type") == kind]


def wandb_rows(out: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = list[tuple[int, dict[str, Any]]]()
    for record in wandb_records(out, "history"):
        row: dict[str, Any] = {}
        for item in record.item:
            name, *inner = item.nested_key or [item.key]
            value = json.loads(item.value_json)
            row[name] = {**row.get(name, {}), inner[0]: value} if inner else value
        rows.append((row.pop("step"), row))
    return rows


def trackio_rows(project: str) -> list[tuple[int, dict[str, Any]]]:
    with sqlite3.connect(STORE / f"{project}.db") as store:
        rows = store.execute("select step, metrics from metrics order by id")
        return [(step, json.loads(metrics)) for step, metrics in rows]


def numbers(rows: list[tuple[int, Mapping[str, Any]]]) -> Values:
    return {
        (name, step, value)
        for step, row in rows
        for name, value in row.items()
        if "/" in name and isinstance(value, float | int)
    }


def board(out: Path) -> EventAccumulator:
    guidance = {"images": 0, "tensors": 0, "scalars": 0}
    return EventAccumulator(str(out / "tensorboard"), size_guidance=guidance).Reload()


def text_of(out: Path, name: str) -> str:
    return board(out).Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


def logged(out: Path) -> Values:
    return numbers([(record["step"], trackers.values_of(record)) for record in run_log.read(out)])


def check_equal(out: Path, project: str) -> None:
    wanted, read = logged(out), board(out)
    assert numbers(wandb_rows(out)) == wanted and numbers(trackio_rows(project)) == wanted
    names = read.Tags()["scalars"]
    found = {(name, each.step, each.value) for name in names for each in read.Scalars(name)}
    assert found == {(name, step, float(np.float32(value))) for name, step, value in wanted}


def pixels(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory, no_network):
    folder = tmp_path_factory.mktemp("whole")
    run = offline(folder, "whole")
    stubs.start(run, folder / "out")
    return folder / "out", run


def test_values_and_sample_grids_are_the_same_everywhere(whole):
    import wandb

    out, _ = whole
    check_equal(out, "whole")
    found = logged(out)
    names = {name for name, _, _ in found}
    assert {"step/reward", "step/phases/update", "evaluate/photo_rate/low"} <= names
    assert {"step/resources/images_per_second", "step/resources/peak_memory_gib"} <= names
    assert {step for name, step, _ in found if name == "evaluate/color_drift"} == {0, 2, 4, 6}
    # an online session would connect when the process ends, whatever the mode of the run
    assert wandb.setup().settings.mode == "offline"
    files = {step: pixels(run_log.grid_path(out, step)) for step in (0, 3, 6)}
    caption = "1. a thing of kind 0\n2. a thing of kind 1\n"
    (wandb_folder,) = (out / "wandb").glob("offline-run-*/files")
    for rows, folder, key in (
        (wandb_rows(out), wandb_folder, "path"),
        (trackio_rows("whole"), STORE / "media", "file_path"),
    ):
        images = {step: row["samples"] for step, row in rows if "samples" in row}
        assert images.keys() == files.keys()
        for step, image in images.items():
            assert np.array_equal(pixels(folder / image[key]), files[step])
            assert image["caption"].startswith(caption)
    images = board(out).Images("samples")
    assert [each.step for each in images] == [0, 3, 6]
    assert np.array_equal(pixels(io.BytesIO(images[1].encoded_image_string)), files[3])
    assert text_of(out, "samples/prompts").startswith(caption)


def test_config_and_summary_are_logged(whole):
    out, run = whole
    summary, given = json.loads((out / "summary.json").read_text()), run.model_dump(mode="json")
    (opened,) = wandb_records(out, "run")
    stored = {item.key: json.loads(item.value_json) for item in opened.config.update}
    assert {key: value for key, value in stored.items() if key != "_wandb"} == given
    assert (opened.project, opened.display_name, list(opened.tags)) == ("whole", "stub", ["a", "b"])
    items = [item for record in wandb_records(out, "summary") for item in record.update if item.key]
    ends = {item.key: json.loads(item.value_json) for item in items}
    assert {name: ends[name] for name in summary} == summary
    assert [record.exit_code for record in wandb_records(out, "exit")] == [0]

    with sqlite3.connect(STORE / "whole.db") as store:
        ((stored,),) = store.execute("select config from configs").fetchall()
    public = {key: value for key, value in json.loads(stored).items() if not key.startswith("_")}
    assert public == given and "align_seconds" in str(trackio_rows("whole")[-1])
    assert json.loads(text_of(out, "config")) == given
    assert json.loads(text_of(out, "summary")) == summary


@NO_NETWORK
def test_a_resumed_run_is_the_same_run_without_records_beyond_its_checkpoint(tmp_path):
    run, out = offline(tmp_path, "resumed", save_every=4), tmp_path / "out"

    def fail(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stubs.start(run, out, on_step=fail)
    first = json.loads((out / "tracked.json").read_text())
    for rows in (wandb_rows(out), trackio_rows("resumed")):
        assert max(step for _, step, _ in numbers(rows)) == 5
    assert [record.exit_code for record in wandb_records(out, "exit")] == [1]
    stubs.start(run, out, resume=True)
    assert json.loads((out / "tracked.json").read_text()) == first
    check_equal(out, "resumed")
    for rows in (wandb_rows(out), trackio_rows("resumed")):
        assert sum("step/reward" in row for _, row in rows) == 6
        assert [step for step, row in rows if "samples" in row] == [0, 3, 6]
    with sqlite3.connect(STORE / "resumed.db") as store:
        names = store.execute("select distinct run_name from metrics").fetchall()
    assert names == [(f"stub-{first['key']}",)]


@NO_NETWORK
def test_records_of_an_earlier_step_texts_and_missing_values(tmp_path):
    opened = trackers.open_trackers(offline(tmp_path, "gaps"), tmp_path, ["x"])
    log, rate = run_log.RunLog(tmp_path, -1, trackers=opened), {"value": 0.5, "low": None}
    step = {"event": "step", "step": 4, "reward": float("nan"), "loss": None, "grad_norm": 0.1}
    log.write({**step, "levels": {"sigma": [0.1, 0.2]}})
    log.write({"event": "stop", "step": 4, "says": "too far", "kept": 2})
    log.write({"event": "kept", "step": 2, "photo_rate": rate})
    log.close()
    wanted = {("step/grad_norm", 4, 0.1), ("stop/kept", 4, 2.0), ("kept/photo_rate/value", 2, 0.5)}
    assert logged(tmp_path) == wanted
    check_equal(tmp_path, "gaps")
    for rows in (wandb_rows(tmp_path), trackio_rows("gaps")):
        assert [row["stop/says"] for _, row in rows if "stop/says" in row] == ["too far"]
    assert text_of(tmp_path, "stop/says") == "too far"


def test_names_and_passwords(tmp_path):
    info = trackers.RunInfo(key="k", space=None, name="../../a/b: best\\one")
    assert trackers.trackio_run_name(info) == "_a_b_ best_one-k"  # no path to another folder
    reward = {"name": "remote", "url": "https://me:hunter2@judge.example:8000/score"}
    method = {"name": "flow_grpo", "form": "absolute"}
    given = stubs.make_run(tmp_path / "prompts.txt").model_dump(mode="json")
    run = config.RunConfig.model_validate({**given, "reward": reward, "method": method})
    public = json.dumps(dict(trackers.run_info(run, tmp_path, []).config))
    assert "hunter2" not in public and "https://judge.example:8000/score" in public


# --- failures during a run ------------------------------------------------------------------------


class Recorder:
    """Stores its calls; `on_record` may fail or wait."""

    def __init__(
        self, on_record: Callable[[int], object] = lambda step: None, has_history: bool = False
    ) -> None:
        self.calls: list[Any] = []
        self._on_record, self.has_history = on_record, has_history

    def log_values(self, values: Mapping[str, float | str], step: int) -> None:
        self._on_record(step)
        self.calls.append((step, dict(values)))

    def log_image(self, pixels: trackers.Pixels, step: int) -> None:
        self.calls.append(("image", step))

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self.calls.append(("summary", dict(summary)))

    def close(self, finished: bool) -> None:
        self.calls.append(("close", finished))


def logged_by(tracker: Recorder, out: Path, steps: int) -> list[int]:
    """Write records and grids through a background tracker; the steps in metrics.jsonl."""
    out.mkdir()
    background = trackers.BackgroundTracker(tracker, "it", "Do this.")
    log = run_log.RunLog(out, -1, trackers=[background])
    for step in range(steps):
        log.write({"event": "step", "step": step, "loss": 0.5})
        log.grid(step, GRID)
        time.sleep(0.01)
    log.summary({"a": 1})
    log.close()
    return [record["step"] for record in run_log.read(out)]


def test_a_background_tracker_logs_in_order_and_a_failure_is_reported_once(tmp_path, caplog):
    def fail(step: int) -> None:
        if step >= 2:
            raise ConnectionError("no route\nand more")

    sound, failing = Recorder(lambda step: time.sleep(0.01)), Recorder(fail)
    logged_by(sound, tmp_path / "a", 3)
    wanted = [call for step in range(3) for call in ((step, {"step/loss": 0.5}), ("image", step))]
    assert sound.calls == [*wanted, ("summary", {"a": 1}), ("close", True)]
    assert caplog.messages == []
    assert logged_by(failing, tmp_path / "b", 5) == [0, 1, 2, 3, 4]
    (message,) = caplog.messages
    assert message.startswith("it failed (ConnectionError: no route)") and "Do this." in message
    assert failing.calls == wanted[:4]


def test_a_tracker_that_hangs_is_dropped(caplog):
    free = threading.Event()

    def hanging(**timeouts: float) -> trackers.BackgroundTracker:
        return trackers.BackgroundTracker(Recorder(lambda step: free.wait()), "it", "", **timeouts)

    during, late = hanging(timeout=0.05, final_timeout=0.1), hanging(final_timeout=0.05)
    for step in range(3):
        during.log_values({}, step)
    assert caplog.messages == []
    time.sleep(0.1)
    during.log_values({}, 3)
    during.close(True)
    late.log_values({}, 0)
    late.close(True)
    free.set()
    first, second = caplog.messages
    assert "made no progress for 0 s" in first and "at the end" in second


@pytest.fixture
def wandb_unreachable(monkeypatch, tmp_path):
    """W&B with a key and an address without a server."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setitem(trackers.WANDB_SETTINGS, "init_timeout", 1)
    wandb.teardown()  # it reads its environment once
    yield wandb
    wandb.teardown()


def with_wandb(folder: Path, mode: str) -> config.RunConfig:
    return with_trackers(folder, {"wandb": {"project": "p", "mode": mode}}, num_steps=4)


def has_wandb_file(out: Path) -> bool:
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    return file.stat().st_size > 0


@pytest.mark.usefixtures("wandb_unreachable")
def test_without_a_network_the_run_is_recorded_offline(tmp_path, capsys):
    out = tmp_path / "out"
    stubs.start(with_wandb(tmp_path, "online"), out)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Weights & Biases" in line]
    assert len(lines) == 2 and "cannot be reached" in lines[0] and "wandb sync" in lines[1]
    assert has_wandb_file(out) and len(run_log.read(out)) == 7


def test_a_service_that_dies_is_reported_and_a_resume_catches_up(
    tmp_path, wandb_unreachable, capsys
):
    run, out = with_wandb(tmp_path, "offline"), tmp_path / "out"

    def kill(step: int) -> None:
        if step == 2:
            command = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
            found = subprocess.run(command, capture_output=True, text=True).stdout.split()
            for process in found:
                os.kill(int(process), signal.SIGKILL)

    stubs.start(run, out, on_step=kill)
    lines = capsys.readouterr().out.splitlines()
    warnings = [line for line in lines if line.startswith("warning: Weights & Biases")]
    assert len(warnings) == 1 and "--resume" in warnings[0] and "wandb sync" in warnings[0]
    assert len(run_log.read(out)) == 7
    with contextlib.suppress(ConnectionError):
        wandb_unreachable.teardown()
    stubs.start(run, out, resume=True)
    assert has_wandb_file(out) and "warning" not in capsys.readouterr().out


# --- before a run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    run, remedy = with_trackers(tmp_path, {name: {"project": "p"}}), f"directalign[{name}]"
    with pytest.raises(DirectAlignError, match=rf"trackers\.{name}.*pip install '{remedy[:11]}"):
        check_trackers(run, is_here=True)
    findings, warnings = check_trackers(run, is_here=False)
    assert findings == [] and len(warnings) == 1 and remedy in warnings[0]


def test_wandb_online_needs_a_login(tmp_path, wandb_unreachable, monkeypatch):
    run = with_wandb(tmp_path, "online")
    assert check_trackers(run, is_here=True)[0] == [("W&B", "online, project p")]
    monkeypatch.delenv("WANDB_API_KEY")
    wandb_unreachable.teardown()
    with pytest.raises(DirectAlignError, match="wandb login"):
        check_trackers(run, is_here=True)
    assert check_trackers(with_wandb(tmp_path, "offline"), is_here=True)[0]
    file = tmp_path / ".netrc"
    file.write_text("machine api.wandb.ai login user password " + "k" * 40)
    assert check_trackers(run, is_here=True)[0]
    file.write_text("machine api.wandb.ai login\nuser nonsense x")
    with pytest.raises(DirectAlignError, match="cannot be read"):
        check_trackers(run, is_here=True)


def test_trackio_is_local_unless_the_recipe_names_a_space(tmp_path, monkeypatch):
    local = with_trackers(tmp_path, {"trackio": {"project": "p"}})
    space = with_trackers(tmp_path, {"trackio": {"project": "p", "space": "me/there"}})
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert check_trackers(local, is_here=True)[0] == [("trackio", "on this machine, project p")]
    with pytest.raises(DirectAlignError, match="hf auth login"):
        check_trackers(space, is_here=True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    assert check_trackers(space, is_here=True)[0] == [("trackio", "me/there, project p")]
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/else")
    with pytest.raises(DirectAlignError, match="TRACKIO_SPACE_ID is set"):
        check_trackers(local, is_here=True)
