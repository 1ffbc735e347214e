"""Checkpoints: whole or not there, everything in them, refused where they do not belong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import train_stubs as stubs

from directalign.io import atomic
from directalign.training import checkpoint, loop
from directalign.training.distributed import TorchProcessGroup
from directalign.types import DirectAlignError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run of six updates with a checkpoint at 2, 4 and 6."""
    stubs.start(stubs.make_run(tmp_path / "prompts.txt", ema_decay=0.9), tmp_path / "out")
    return tmp_path / "out"


def again(out: Path, **train: Any) -> stubs.StubModel:
    return stubs.start(
        stubs.make_run(out.parent / "prompts.txt", **{"ema_decay": 0.9, **train}), out, resume=True
    )


def names(out: Path) -> list[str]:
    return [path.name for path in checkpoint.all_of(out / "checkpoints")]


def test_it_holds_everything_and_loads_without_unpickling(out: Path):
    path = out / "checkpoints" / "step-000006"
    tensors = {f"{group}.safetensors" for group in ("weights", "ema", "exp_avg", "exp_avg_sq")}
    assert {f.name for f in path.iterdir()} == {
        *tensors,
        "optimizer.pt",
        "rank-0.pt",
        "record.json",
        "manifest.json",
    }
    own = torch.load(path / "rank-0.pt", weights_only=True)
    assert set(own["random"]) == {"python", "numpy", "torch", "cuda"} and set(own["method"]) == {
        "reference"
    }
    assert torch.load(path / "optimizer.pt", weights_only=True)["state"][0]["step"] == 6
    record = checkpoint.read_record(path)
    assert (
        record["step"] == 6
        and record["config"]["train"]["num_steps"] == 6
        and record["data"]["ranks"] == 1
        and record["data"]["global_batch_size"] == 2
    )
    assert (
        record["schedule"] == {"kind": "constant", "learning_rate": 0.05}
        and "torch" in record["versions"]
    )


def test_random_states_come_back(out: Path, monkeypatch: pytest.MonkeyPatch):
    found = []
    monkeypatch.setattr(
        loop, "train", lambda job, done: found.append(checkpoint.random_state()) or done
    )
    torch.manual_seed(99)
    again(out)
    kept = torch.load(out / "checkpoints" / "step-000006" / "rank-0.pt", weights_only=True)[
        "random"
    ]
    assert torch.equal(found[0]["torch"], kept["torch"]) and found[0]["numpy"] == kept["numpy"]


def test_only_the_newest_are_kept(out: Path):
    again(out, num_steps=11, keep_checkpoints=2)
    assert names(out) == ["step-000010", "step-000011"]


def test_a_crash_between_writing_and_renaming_leaves_the_former_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = stubs.make_run(tmp_path / "prompts.txt")

    def crash(target: Path, files: Mapping[str, Any]) -> None:
        if target.name == "step-000004":
            raise KeyboardInterrupt  # stands for a kill: nothing cleans up
        real(target, files)

    real = atomic.publish
    monkeypatch.setattr(atomic, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        stubs.start(run, tmp_path / "out")
    monkeypatch.undo()
    folder = tmp_path / "out" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [".partial-step-000004", "step-000002"]
    stubs.start(run, tmp_path / "out", resume=True)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000004", "step-000006"]


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.pt", "rank-0.pt", "record.json", "manifest.json"]
)
def test_a_truncated_file_is_named_and_the_checkpoint_before_is_used(
    out: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    file = out / "checkpoints" / "step-000006" / name
    file.write_bytes(file.read_bytes()[:-7])
    wanted = (out / "lora.safetensors").read_bytes()
    again(out)
    said = capsys.readouterr().out
    assert (
        "damaged checkpoint" in said
        and f"step-000006 ({name}" in said
        and "using " in said and "step-000004" in said
    )
    assert (out / "lora.safetensors").read_bytes() == wanted
    assert atomic.damage(out / "checkpoints" / "step-000006") is None


def test_damage_is_told_apart(out: Path):
    folder = out / "checkpoints" / "step-000006"
    assert atomic.damage(folder) is None
    content = bytearray((folder / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "optimizer.pt").write_bytes(content)
    assert atomic.damage(folder) == "optimizer.pt does not match its checksum"
    (folder / "optimizer.pt").unlink()
    assert atomic.damage(folder) == "optimizer.pt is missing"
    (folder / "manifest.json").unlink()
    assert atomic.damage(folder) == "manifest.json is missing"


def test_when_all_are_damaged_it_is_an_error(out: Path):
    for path in checkpoint.all_of(out / "checkpoints"):
        (path / "weights.safetensors").unlink()
    with pytest.raises(
        DirectAlignError,
        match=r"no checkpoint can be used: .*step-000006 \(weights\.safetensors is missing\); .*step-000002",
    ):
        again(out)


def test_another_config_is_refused_with_the_keys_that_differ(out: Path):
    before = (out / "metrics.jsonl").read_text()
    with pytest.raises(
        DirectAlignError,
        match=r"another config: train\.learning_rate was 0\.05 and is 0\.1, train\.max_grad_norm was 1\.0 and is 3\.0; restore",
    ):
        again(out, max_grad_norm=3.0, learning_rate=0.1)
    assert (out / "metrics.jsonl").read_text() == before


def test_the_length_and_what_is_kept_or_measured_may_change(out: Path):
    again(out, num_steps=8, save_every=3, keep_checkpoints=5, sample_every=4)
    assert names(out) == ["step-000002", "step-000004", "step-000006", "step-000008"]


def test_a_checkpoint_past_the_end_is_refused(out: Path):
    with pytest.raises(
        DirectAlignError, match=r"step 6, past train\.num_steps 5; raise train\.num_steps"
    ):
        again(out, num_steps=5)


def test_another_architecture_data_set_or_format_is_refused(out: Path):
    path = out / "checkpoints" / "step-000006"
    record = checkpoint.read_record(path)
    for change, message in (
        ({"architecture": "0123"}, r"another architecture \(0123, not [0-9a-f]{16}\): model\.path"),
        ({"data": {**record["data"], "fingerprint": "0123"}}, r"another data .*data\.prompts"),
        ({"format": 1}, r"written by directalign .* in another format"),
    ):
        (path / "record.json").write_text(json.dumps({**record, **change}))
        (path / "manifest.json").unlink()
        shutil.move(path, atomic.partial_of(path))
        atomic.publish(path, atomic.checksums(atomic.partial_of(path)))
        with pytest.raises(DirectAlignError, match=message):
            again(out)


def test_one_global_batch_may_be_shared_out_anew_but_not_be_another(out: Path):
    wanted = (out / "lora.safetensors").read_bytes()
    again(out, batch_size=1, gradient_accumulation_steps=2, parallel="data")
    again(out, batch_size=1, global_batch_size=2)
    assert (out / "lora.safetensors").read_bytes() == wanted
    message = r"another global batch: 2 prompts per step on 1 ranks, and 6 on 1 now; set train\.global_batch_size: 2, or data\.batch_size"
    with pytest.raises(DirectAlignError, match=message):
        again(out, batch_size=3, gradient_accumulation_steps=2)


def test_the_architecture_is_names_and_shapes_not_weights():
    whole, other = stubs.LowRank(full=True), stubs.LowRank(full=True)
    torch.nn.init.normal_(other.base)
    assert checkpoint.architecture(whole) == checkpoint.architecture(other)
    assert checkpoint.architecture(whole) != checkpoint.architecture(stubs.LowRank(full=False))


def test_a_changed_prompt_list_is_noticed(out: Path):
    run = stubs.make_run(out.parent / "prompts.txt", ema_decay=0.9)
    (out.parent / "prompts.txt").write_text("something else")
    with pytest.raises(DirectAlignError, match="another data"):
        stubs.start(run, out, resume=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_line_and_the_last_good_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
):
    real = torch.save

    def full(value: Any, file: Path) -> None:
        if "step-000004" in str(file) and file.name == "optimizer.pt":
            Path(file).write_bytes(b"half")
            raise (
                RuntimeError("writer failed: No space left on device")
                if wrapped
                else OSError(errno.ENOSPC, "No space left on device")
            )
        real(value, file)

    monkeypatch.setattr(torch, "save", full)
    message = r"cannot write checkpoint .*step-000004: no space left on the disk; .*step-000002 is kept; free some space and continue with --resume"
    with pytest.raises(DirectAlignError, match=message):
        stubs.start(stubs.make_run(tmp_path / "prompts.txt"), tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-000002"] and atomic.damage(
        folder / "step-000002"
    ) is None


def test_nothing_is_found_where_nothing_is(tmp_path: Path):
    assert checkpoint.find(tmp_path / "checkpoints", TorchProcessGroup()) is None
    assert checkpoint.all_of(tmp_path) == []


def test_a_single_rank_needs_no_process_group():
    ranks = TorchProcessGroup()
    assert ranks.is_main and ranks.any(True) and not ranks.any(False)
    assert ranks.sum(torch.tensor([2.0])).tolist() == [2.0]
