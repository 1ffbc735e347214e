"""TensorBoard, Weights & Biases and trackio hold what metrics.jsonl says, no more and no less: read back from what each wrote itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_stubs as stubs
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from directalign import config
from directalign.training import checkpoint, run_log, trackers
from directalign.training.loop import Interrupted

STORE = Path(tempfile.gettempdir()) / f"trackio-{os.getpid()}"
os.environ["TRACKIO_DIR"] = str(STORE)  # trackio reads it once, when it is imported

Values = set[tuple[str, int, float]]


@pytest.fixture(scope="module", autouse=True)
def _store() -> Iterator[None]:
    yield
    shutil.rmtree(STORE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No look for an address outside is made, though somebody is logged in everywhere."""
    looked_up: list[str] = []

    def refuse(host: Any, *rest: Any, **more: Any) -> Any:
        looked_up.append(str(host))
        raise socket.gaierror(f"no network in tests: {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        for name, value in {
            "HOME": str(tmp_path_factory.mktemp("home")),
            "HF_TOKEN": "hf_secret",
            "WANDB_API_KEY": "s" * 40,
        }.items():
            patch.setenv(name, value)
        yield
    assert looked_up == []


def tracked(folder: Path, project: str, **train: Any) -> config.RunConfig:
    run = stubs.make_run(folder / "prompts.txt", **train)
    asked = {
        "wandb": {"project": project, "mode": "offline", "tags": ["a", "b"]},
        "trackio": {"project": project},
    }
    return config.RunConfig.model_validate({**run.model_dump(mode="json"), "trackers": asked})


# --- what each wrote ----------------------------------------------------------------------------------------------------


def wandb_records(out: Path) -> list[Any]:
    """The records of the one .wandb file: blocks of 32 KiB with pieces of (checksum, length, kind), as LevelDB logs are."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    content, place, piece, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        _, length, kind = (
            struct.unpack("<IHB", content[place : place + 7]) if left >= 7 else (0, 0, 0)
        )
        if kind == 0:
            place += left
            continue
        piece += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(piece))
            piece = b""
    return found


def wandb_rows(out: Path) -> list[dict[str, Any]]:
    rows = [
        record.history
        for record in wandb_records(out)
        if record.WhichOneof("record_type") == "history"
    ]
    return [
        _nested((item.nested_key or [item.key], json.loads(item.value_json)) for item in row.item)
        for row in rows
    ]


def _nested(items: Iterator[tuple[Any, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for (name, *inner), value in items:
        if inner:
            row.setdefault(name, {})[inner[0]] = value
        else:
            row[name] = value
    return row


def in_wandb(out: Path) -> Values:
    rows = [(row.pop("step"), row) for row in wandb_rows(out)]
    return {
        (name, step, value)
        for step, row in rows
        for name, value in row.items()
        if "/" in name and isinstance(value, float | int)
    }


def trackio_rows(project: str) -> list[tuple[int, dict[str, Any]]]:
    with sqlite3.connect(STORE / f"{project}.db") as store:
        return [
            (step, json.loads(metrics))
            for step, metrics in store.execute("select step, metrics from metrics order by id")
        ]


def in_trackio(project: str) -> Values:
    return {
        (name, step, value)
        for step, row in trackio_rows(project)
        for name, value in row.items()
        if isinstance(value, float | int)
    }


def board(out: Path) -> EventAccumulator:
    return EventAccumulator(
        str(out / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0}
    ).Reload()


def in_board(out: Path) -> Values:
    read = board(out)
    return {
        (name, each.step, each.value)
        for name in read.Tags()["scalars"]
        for each in read.Scalars(name)
    }


def in_records(out: Path) -> Values:
    told = [(trackers.values_of(record), record["step"]) for record in run_log.read(out)]
    return {
        (name, step, value)
        for values, step in told
        for name, value in values.items()
        if not isinstance(value, str)
    }


def rounded(values: Values) -> Values:
    """In single precision, as TensorBoard keeps them."""
    return {(name, step, float(np.float32(value))) for name, step, value in values}


def show_the_same(out: Path, project: str) -> None:
    wanted = in_records(out)
    assert in_wandb(out) == wanted
    assert in_trackio(project) == wanted
    assert in_board(out) == rounded(wanted)


def levels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.array(picture.convert("RGB"))


# --- whole runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, config.RunConfig]:
    folder = tmp_path_factory.mktemp("whole")
    run = tracked(folder, "whole")
    stubs.start(run, folder / "out")
    return folder / "out", run


def test_the_three_hold_the_same_set_of_name_step_and_value(whole: tuple[Path, config.RunConfig]):
    out, _ = whole
    show_the_same(out, "whole")
    names = {name for name, _, _ in in_records(out)}
    assert {
        "step/reward",
        "evaluate/photo_rate/low",
        "evaluate/photo_rate/high",
        "step/phases/optimise",
    } & names >= {"step/reward", "evaluate/photo_rate/low"}
    assert {step for name, step, _ in in_records(out) if name == "evaluate/color_drift"} == {
        0,
        2,
        4,
        6,
    }


def test_the_whole_session_of_an_offline_run_is_offline(whole: tuple[Path, config.RunConfig]):
    """A session that is not asks for W&B's address when the process ends, whatever the mode of the run."""
    import wandb

    assert wandb.setup().settings.mode == "offline"


def test_the_sample_grids_arrive_pixel_by_pixel_with_their_prompts(
    whole: tuple[Path, config.RunConfig],
):
    out, _ = whole
    files = {step: levels(run_log.grid_path(out, step)) for step in (0, 3, 6)}
    caption = "1. a thing of kind 0\n2. a thing of kind 1\n"

    (run_folder,) = (out / "wandb").glob("offline-run-*")
    shown = {row["step"]: row["samples"] for row in wandb_rows(out) if "samples" in row}
    assert shown.keys() == files.keys()
    for step, picture in shown.items():
        assert np.array_equal(
            levels(run_folder / "files" / picture["path"]), files[step]
        ) and picture["caption"].startswith(caption)

    shown = {step: row["samples"] for step, row in trackio_rows("whole") if "samples" in row}
    assert shown.keys() == files.keys()
    for step, picture in shown.items():
        assert np.array_equal(
            levels(STORE / "media" / picture["file_path"]), files[step]
        ) and picture["caption"].startswith(caption)

    read = board(out)
    assert [each.step for each in read.Images("samples")] == [0, 3, 6]
    (out / "shown.png").write_bytes(read.Images("samples")[1].encoded_image_string)
    assert np.array_equal(levels(out / "shown.png"), files[3])
    assert (
        read.Tensors("samples/prompts/text_summary")[0]
        .tensor_proto.string_val[0]
        .decode()
        .startswith(caption)
    )


def test_the_resolved_config_and_the_summary_are_told(whole: tuple[Path, config.RunConfig]):
    out, run = whole
    found = json.loads((out / "summary.json").read_text())
    told = run.model_dump(mode="json")

    records = wandb_records(out)
    (opened,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {
        item.key: json.loads(item.value_json)
        for item in opened.config.update
        if item.key != "_wandb"
    } == told
    assert (opened.project, opened.display_name, list(opened.tags)) == ("whole", "stub", ["a", "b"])
    ends = {
        item.key: json.loads(item.value_json)
        for r in records
        if r.WhichOneof("record_type") == "summary"
        for item in r.summary.update
        if item.key
    }
    assert {name: ends[name] for name in found} == found
    assert [
        record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"
    ] == [0]

    with sqlite3.connect(STORE / "whole.db") as store:
        ((stored,),) = store.execute("select config from configs").fetchall()
    assert {
        name: value for name, value in json.loads(stored).items() if not name.startswith("_")
    } == told
    assert "align_seconds" in str(trackio_rows("whole")[-1])

    texts = {
        name: board(out).Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("config", "summary")
    }
    assert json.loads(texts["config"]) == told and json.loads(texts["summary"]) == found


def test_a_resumed_run_is_the_same_run_and_forgets_what_lies_beyond_its_checkpoint(tmp_path: Path):
    run, out = tracked(tmp_path, "resumed", save_every=4), tmp_path / "out"

    def die(step: int) -> None:
        if step == 5 and not (out / "died").exists():
            (out / "died").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stubs.start(run, out, on_step=die)
    first = json.loads((out / "tracked.json").read_text())
    assert (
        max(step for _, step, _ in in_wandb(out)) == 5
        and max(step for _, step, _ in in_trackio("resumed")) == 5
    )
    assert [
        r.exit.exit_code for r in wandb_records(out) if r.WhichOneof("record_type") == "exit"
    ] == [1]
    stubs.start(run, out, resume=True)
    assert json.loads((out / "tracked.json").read_text()) == first
    show_the_same(out, "resumed")
    assert (
        sum("step/reward" in row for row in wandb_rows(out))
        == sum("step/reward" in row for _, row in trackio_rows("resumed"))
        == 6
    )
    assert (
        [row["step"] for row in wandb_rows(out) if "samples" in row]
        == [step for step, row in trackio_rows("resumed") if "samples" in row]
        == [0, 3, 6]
    )
    with sqlite3.connect(STORE / "resumed.db") as store:
        assert store.execute("select distinct run_name from metrics").fetchall() == [
            (f"stub-{first['key']}",)
        ]


def test_who_shows_a_run_may_change_when_it_is_resumed(tmp_path: Path):
    run, out = tracked(tmp_path, "late"), tmp_path / "out"
    before = run.model_copy(update={"trackers": config.TrackersConfig(tensorboard=False)})
    stubs.start(before, out)
    assert not any(
        (out / name).exists() for name in ("tensorboard", "wandb", "tracked.json")
    ) and checkpoint.all_of(out / "checkpoints")
    stubs.start(
        run.model_copy(update={"train": run.train.model_copy(update={"num_steps": 8})}),
        out,
        resume=True,
    )
    show_the_same(out, "late")
    assert {step for name, step, _ in in_records(out) if name == "step/loss"} == set(range(1, 9))


def test_records_of_an_earlier_step_texts_and_holes(tmp_path: Path):
    from directalign.training.trackers import open_trackers

    run = tracked(tmp_path, "holes")
    written = run_log.RunLog(tmp_path, -1, trackers=open_trackers(run, tmp_path, ["x"]))
    written.write(
        {
            "event": "step",
            "step": 4,
            "reward": float("nan"),
            "loss": None,
            "grad_norm": 0.1,
            "levels": {"sigma": [0.1, 0.2]},
        }
    )
    written.write({"event": "stop", "step": 4, "reason": "drift", "says": "too far", "kept": 2})
    written.write({"event": "kept", "step": 2, "photo_rate": {"value": 0.5, "low": None, "n": 4}})
    written.close()
    assert in_records(tmp_path) == {
        ("step/grad_norm", 4, 0.1),
        ("stop/kept", 4, 2.0),
        ("kept/photo_rate/value", 2, 0.5),
        ("kept/photo_rate/n", 2, 4.0),
    }
    show_the_same(tmp_path, "holes")
    assert [row["stop/says"] for row in wandb_rows(tmp_path) if "stop/says" in row] == ["too far"]
    assert [row["stop/says"] for _, row in trackio_rows("holes") if "stop/says" in row] == [
        "too far"
    ]
    assert board(tmp_path).Tensors("stop/says/text_summary")[0].tensor_proto.string_val == [
        b"too far"
    ]


def test_a_name_leads_out_of_no_folder():
    told = trackers.RunInfo("k", "../../a/b: best\\one", {}, "", None)
    assert trackers.trackio_run_name(told) == "_a_b_ best_one-k"


def test_no_secret_is_told(tmp_path: Path):
    run = tracked(tmp_path, "secrets")
    reward = {"name": "remote", "url": "https://me:hunter2@judge.example:8000/score"}
    run = config.RunConfig.model_validate(
        {
            **run.model_dump(mode="json"),
            "reward": reward,
            "method": {"name": "flow_grpo", "form": "absolute"},
        }
    )
    told = json.dumps(dict(trackers.run_info(run, tmp_path, []).config))
    assert "hunter2" not in told and "https://judge.example:8000/score" in told


def test_an_interrupted_run_is_left_open_and_whole(tmp_path: Path):
    import signal

    run, out = tracked(tmp_path, "interrupted"), tmp_path / "out"

    def stop(step: int) -> None:
        if step == 3 and not (out / "died").exists():
            (out / "died").touch()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        stubs.start(run, out, on_step=stop)
    show_the_same(out, "interrupted")
