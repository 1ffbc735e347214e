"""Checkpoints: complete or absent, restored exactly, refused where they do not belong."""

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import train_stubs as stubs

from directalign.config.load import load_run
from directalign.io import atomic
from directalign.training import checkpoint
from directalign.training.distributed import TorchProcessGroup
from directalign.types import DirectAlignError

WEIGHTS = "lora.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with checkpoints at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    stubs.start(stubs.make_run(folder / "prompts.txt", ema_decay=0.9), folder / "out")
    return folder / "out"


@pytest.fixture
def out(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


def prompts_of(out: Path) -> Path:
    return Path(str(load_run(out / "run.yaml").data.prompts))


def resume(out: Path, **train: Any) -> None:
    run = stubs.make_run(prompts_of(out), **{"ema_decay": 0.9, **train})
    stubs.start(run, out, resume=True)


def names(out: Path) -> list[str]:
    return [path.name for path in checkpoint.all_of(out / "checkpoints")]


def test_length_logging_and_number_of_checkpoints_may_change(out):
    resume(out, num_steps=8, save_every=3, keep_checkpoints=5, sample_every=4)
    assert names(out) == ["step-000002", "step-000004", "step-000006", "step-000008"]
    resume(out, num_steps=11, keep_checkpoints=2)
    assert names(out) == ["step-000010", "step-000011"]


def test_a_crash_before_the_rename_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    run, real = stubs.make_run(tmp_path / "prompts.txt"), atomic.publish

    def crash(target: Path, files: Mapping[str, Any]) -> None:
        if target.name == "step-000004":
            raise KeyboardInterrupt  # as a kill: nothing cleans up
        real(target, files)

    monkeypatch.setattr(atomic, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        stubs.start(run, tmp_path / "out")
    monkeypatch.undo()
    folder = tmp_path / "out" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [".partial-step-000004", "step-000002"]
    stubs.start(run, tmp_path / "out", resume=True)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000004", "step-000006"]


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(out, name, capsys):
    file = out / "checkpoints" / "step-000006" / name
    file.write_bytes(file.read_bytes()[:-7])
    wanted = (out / WEIGHTS).read_bytes()
    resume(out)
    output = capsys.readouterr().out
    assert f"step-000006 ({name}" in output and "step-000004" in output.split("using")[1]
    assert (out / WEIGHTS).read_bytes() == wanted
    assert atomic.damage(out / "checkpoints" / "step-000006") is None


def tampered(path: Path, name: str, content: bytes) -> None:
    """Another content of one file, with a manifest that fits it."""
    (path / name).write_bytes(content)
    (path / "manifest.json").unlink()
    shutil.move(path, atomic.partial_of(path))
    atomic.publish(path, atomic.checksums(atomic.partial_of(path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b'{"files": {"record.json": 3}}'),
        ("record.json", b"[" * 9000),
        ("record.json", b'{"step": "6"}'),
    ],
)
def test_json_of_another_shape_is_damage(out, name, content, capsys):
    path, wanted = out / "checkpoints" / "step-000006", (out / WEIGHTS).read_bytes()
    if name == "manifest.json":
        (path / name).write_bytes(content)
    else:
        tampered(path, name, content)
    resume(out)
    output = capsys.readouterr().out
    assert f"step-000006 ({name}" in output and "using" in output
    assert (out / WEIGHTS).read_bytes() == wanted


@pytest.mark.parametrize("name", ["optimizer.pt", "rank-0.pt"])
def test_a_state_of_other_objects_is_one_line_with_its_remedy(out, name, tmp_path):
    torch.save({"a": 1}, tmp_path / "state")
    path = out / "checkpoints" / "step-000006"
    tampered(path, name, (tmp_path / "state").read_bytes())
    with pytest.raises(DirectAlignError, match="remove this folder, and --resume") as caught:
        resume(out)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    shutil.rmtree(path)
    resume(out)


def test_when_all_are_damaged_it_is_an_error(out):
    for path in checkpoint.all_of(out / "checkpoints"):
        (path / "weights.safetensors").unlink()
    message = r"no checkpoint can be used: .*step-000006 \(weights\.safetensors is missing\); .*2"
    with pytest.raises(DirectAlignError, match=message):
        resume(out)
    assert checkpoint.find(out / "nowhere", TorchProcessGroup()) is None


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"max_grad_norm": 3.0, "learning_rate": 0.1},
            r"another config: train\.learning_rate 0\.05 -> 0\.1, train\.max_grad_norm ",
        ),
        ({"num_steps": 5}, r"step 6, past train\.num_steps 5; raise train\.num_steps"),
        (
            {"batch_size": 3, "gradient_accumulation_steps": 2},
            r"global batch: 2 prompts per step on 1 ranks, and 6 on 1 now; set train\.global_batch",
        ),
    ],
)
def test_another_recipe_is_refused(out, train, message):
    before = (out / "metrics.jsonl").read_text()
    with pytest.raises(DirectAlignError, match=message):
        resume(out, **train)
    assert (out / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "0123"}, r"another architecture \(0123, not [0-9a-f]{16}\): model\.path"),
        ({"fingerprint": "0123"}, r"another data .*data\.prompts"),
        ({"format": 1}, r"written by directalign .* in another format"),
    ],
)
def test_another_architecture_data_set_or_format_is_refused(out, change, message):
    path = out / "checkpoints" / "step-000006"
    record = checkpoint.read_record(path)
    record |= {"data": {**record["data"], **change}} if "fingerprint" in change else change
    tampered(path, "record.json", json.dumps(record).encode())
    with pytest.raises(DirectAlignError, match=message):
        resume(out)


def test_the_layout_of_one_global_batch_may_change(out):
    wanted = (out / WEIGHTS).read_bytes()
    resume(out, batch_size=1, gradient_accumulation_steps=2, parallel="data")
    resume(out, batch_size=1, global_batch_size=2)
    assert (out / WEIGHTS).read_bytes() == wanted


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), RuntimeError("failed: No space left on device")],
)
def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay(tmp_path, monkeypatch, error):
    real = torch.save

    def full(value: Any, file: Path) -> None:
        if "step-000004" in str(file) and file.name == "optimizer.pt":
            Path(file).write_bytes(b"half")
            raise error
        real(value, file)

    monkeypatch.setattr(torch, "save", full)
    message = r"cannot write checkpoint .*4: no space left on the disk; .*step-000002 is kept; free"
    with pytest.raises(DirectAlignError, match=message):
        stubs.start(stubs.make_run(tmp_path / "prompts.txt"), tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-000002"]
    assert atomic.damage(folder / "step-000002") is None


def test_copies_under_other_names_are_no_checkpoints(tmp_path):
    for name in ("step-1000000", "step-000002", "step-000002 copy", "step-000003.bak", "step-x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["step-000002", "step-1000000"]
