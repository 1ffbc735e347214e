"""A whole run on stubs: what it leaves, what resuming repeats, who may use which folder, how it stops."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_stubs as stubs
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from directalign.training import run_folder, run_log
from directalign.training.loop import Interrupted, StopRequest
from directalign.types import DirectAlignError, NonFiniteError


def without_timings(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in run_log.TIMINGS}
        for record in run_log.read(out)
    ]


def steps(out: Path, event: str) -> list[int]:
    return [record["step"] for record in run_log.read(out) if record["event"] == event]


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return {
        name: [(e.step, e.value) for e in board.Scalars(name)]
        for name in board.Tags()["scalars"]
        if not any(t in name for t in run_log.TIMINGS)
    }


def stop_at(step: int):
    """One signal at the start of an update, which has two batches: a second one would end the process."""
    seen: list[int] = []

    def watch(current: int) -> None:
        seen.append(current)
        if seen.count(step) == 1 and current == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def test_what_a_run_leaves(tmp_path: Path):
    out = tmp_path / "out"
    family = stubs.start(stubs.make_run(tmp_path / "prompts.txt"), out)
    assert {p.name for p in out.iterdir()} == {
        "run.yaml",
        "metrics.jsonl",
        "tensorboard",
        "samples",
        "checkpoints",
        "lora.safetensors",
        "summary.json",
    }
    assert [p.name for p in sorted((out / "samples").glob("*.png"))] == [
        "step-000000.png",
        "step-000003.png",
        "step-000006.png",
    ]
    assert json.loads((out / "samples" / "samples.json").read_text()) == {
        "prompts": stubs.PROMPTS[:8],
        "seeds": list(range(8)),
        "columns": 4,
    }
    assert torch.equal(load_file(out / "lora.safetensors")["base"], family.denoiser.base)
    assert steps(out, "step") == [1, 2, 3, 4, 5, 6] and steps(out, "evaluate") == [0, 2, 4, 6]


def test_the_summary_tells_before_and_after_and_counts_the_steps_alone(tmp_path: Path):
    out = tmp_path / "out"
    stubs.start(stubs.make_run(tmp_path / "prompts.txt"), out)
    found = json.loads((out / "summary.json").read_text())
    seconds = [record["seconds"] for record in run_log.read(out) if record["event"] == "step"]
    assert found["align_seconds"] == pytest.approx(sum(seconds)) and found["num_steps"] == 6
    assert (found["before"]["step"], found["after"]["step"]) == (0, 6) and found["before"][
        "photo_rate"
    ]["n"] == 4
    assert found["final"]["step"] == 6 and found["trained_weights"] == 16 and found["seed"] == 0
    assert (
        found["versions"]["torch"] == torch.__version__
        and found["machine"]["cores"] == os.cpu_count()
    )


def test_a_step_record_says_what_the_page_needs(tmp_path: Path):
    stubs.start(
        stubs.make_run(tmp_path / "prompts.txt", warmup_steps=1, gradient_accumulation_steps=2),
        tmp_path / "out",
    )
    record = next(r for r in run_log.read(tmp_path / "out") if r["event"] == "step")
    assert set(record["losses"]) == {"denoise", "inversion"} and record["loss"] == pytest.approx(
        sum(record["losses"].values())
    )
    assert record["learning_rate"] == 0.025 and record["grad_norm"] > 0 and record["reward"] < 0
    assert sum(row["n"] for row in record["levels"]["denoise"]) == 4
    assert (
        set(record["phases"]) == {"forward", "backward", "update"}
        and sum(record["phases"].values()) <= record["seconds"]
    )


def test_measuring_and_sampling_do_not_touch_training(tmp_path: Path):
    looked = stubs.start(stubs.make_run(tmp_path / "prompts.txt", sample_every=1), tmp_path / "a")
    run = stubs.make_run(tmp_path / "prompts.txt", sample_every=0)
    blind = stubs.start(
        run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"every": 0})}),
        tmp_path / "b",
    )
    assert torch.equal(looked.denoiser.base, blind.denoiser.base)


def test_with_an_average_it_is_the_average_that_is_measured_and_saved(tmp_path: Path):
    out = tmp_path / "out"
    family = stubs.start(stubs.make_run(tmp_path / "prompts.txt", ema_decay=0.9), out)
    average = load_file(out / "checkpoints" / "step-000006" / "ema.safetensors")["ema.base"]
    saved = load_file(out / "lora.safetensors")["base"]
    assert torch.equal(saved, average) and not torch.equal(saved, family.denoiser.base)
    assert run_log.read(out)[-1]["color_drift"] == pytest.approx(float(average.sum()))


@pytest.mark.parametrize(("tune", "stop"), [("full", 0), ("full", 3), ("lora", 4)])
def test_a_signal_ends_after_the_step_and_resume_repeats_the_undisturbed_run(
    tmp_path: Path, tune: str, stop: int
):
    run = stubs.make_run(
        tmp_path / "prompts.txt",
        tune=tune,
        ema_decay=0.8,
        schedule="cosine",
        gradient_accumulation_steps=2,
    )
    stubs.start(run, tmp_path / "whole")
    with pytest.raises(
        Interrupted, match=rf"stopped by SIGTERM after step {stop + 1} of 6; continue with --resume"
    ):
        stubs.start(run, tmp_path / "broken", on_step=stop_at(stop))
    assert (
        steps(tmp_path / "broken", "step")[-1] == stop + 1
        and not (tmp_path / "broken" / "summary.json").exists()
    )
    stubs.start(run, tmp_path / "broken", resume=True)
    assert (tmp_path / "broken" / "lora.safetensors").read_bytes() == (
        tmp_path / "whole" / "lora.safetensors"
    ).read_bytes()
    assert without_timings(tmp_path / "broken") == without_timings(tmp_path / "whole")
    assert scalars(tmp_path / "broken") == scalars(tmp_path / "whole")
    for picture in (tmp_path / "whole" / "samples").iterdir():
        assert (tmp_path / "broken" / "samples" / picture.name).read_bytes() == picture.read_bytes()


def test_records_after_the_checkpoint_are_forgotten(tmp_path: Path):
    run, out = stubs.make_run(tmp_path / "prompts.txt", save_every=4), tmp_path / "out"
    stubs.start(run, tmp_path / "whole")
    with pytest.raises(NonFiniteError):
        stubs.start(
            run, out, spoil=lambda value, step, branch: value * float("nan") if step == 5 else value
        )
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"event": "step", "step": 6, "lo')
    assert steps(out, "step") == [1, 2, 3, 4, 5]
    stubs.start(run, out, resume=True)
    assert without_timings(out) == without_timings(tmp_path / "whole")


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path):
    run = stubs.make_run(tmp_path / "prompts.txt")
    message = r"step 4: the loss is nan \(branch inversion, sigma 0\.\d{4}, 0\.\d{4}\).*last checkpoint is .*step-000002"
    with pytest.raises(NonFiniteError, match=message):
        stubs.start(
            run,
            tmp_path / "out",
            spoil=lambda v, step, branch: (
                v * float("nan") if (step, branch) == (3, "inversion") else v
            ),
        )
    with pytest.raises(NonFiniteError, match=r"step 1: .*there is no checkpoint yet"):
        stubs.start(run, tmp_path / "other", spoil=lambda value, step, branch: value / 0)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path):
    run, out = stubs.make_run(tmp_path / "prompts.txt"), tmp_path / "out"
    stubs.start(run, out)
    before = (out / "metrics.jsonl").read_bytes(), (out / "lora.safetensors").read_bytes()
    stubs.start(run, out, resume=True)
    assert ((out / "metrics.jsonl").read_bytes(), (out / "lora.safetensors").read_bytes()) == before


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path):
    run, out = stubs.make_run(tmp_path / "prompts.txt"), tmp_path / "out"
    stubs.start(run, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(
        DirectAlignError, match=r"already holds a run \(run\.yaml, .*; add --resume"
    ):
        stubs.start(run, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_folders_that_cannot_be_used(tmp_path: Path):
    run = stubs.make_run(tmp_path / "prompts.txt")
    with pytest.raises(DirectAlignError, match="there is no folder"):
        stubs.start(run, tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DirectAlignError, match=r"holds no run \(no run\.yaml\)"):
        stubs.start(run, tmp_path / "empty", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectAlignError, match="is a file; name a folder"):
        stubs.start(run, tmp_path / "file")
    with pytest.raises(DirectAlignError, match=r"cannot be created: Not a directory"):
        stubs.start(run, tmp_path / "file" / "out")


def test_a_run_without_a_checkpoint_starts_from_the_beginning_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, out = stubs.make_run(tmp_path / "prompts.txt"), tmp_path / "out"
    stubs.start(run, tmp_path / "whole")
    with pytest.raises(NonFiniteError):
        stubs.start(
            run, out, spoil=lambda value, step, branch: value * float("nan") if step == 1 else value
        )
    stubs.start(run, out, resume=True)
    assert "no checkpoint in" in capsys.readouterr().out
    assert without_timings(out) == without_timings(tmp_path / "whole")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler: a shell that starts a job in the background leaves SIGINT ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("interruptible")
def test_the_second_signal_finds_the_former_handler():
    former = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT" and signal.getsignal(signal.SIGINT) is former
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former


def test_the_commit_is_that_of_this_package_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    found = run_folder.commit()
    assert found is None or len(found.split("+")[0]) == 40
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))
    assert run_folder.commit() is None
