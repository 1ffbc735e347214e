"""Whole runs with stop rules on stubs: what they keep and leave, where they end, and that nothing is lost on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import train_stubs as stubs
from safetensors.torch import load_file
from test_kill import finished, forked
from test_session import steps, stop_at, without_timings

from directalign import config
from directalign.io import atomic
from directalign.training import checkpoint, early_stopping, run_log
from directalign.training.distributed import TorchProcessGroup
from directalign.training.loop import Interrupted
from directalign.training import run_folder
from directalign.training.run import Loaded, train_loaded

from directalign.types import DirectAlignError, NonFiniteError

run_module = sys.modules["directalign.training.run"]


class Measurer(stubs.StubMeasurer):
    """Answers by how far the weights are from where they began: the judge peaks at a distance of `peak`, content falls from there on."""

    def __init__(self, family: stubs.StubModel, run: config.RunConfig, peak: float) -> None:
        super().__init__(family)
        self.run, self.peak = run, peak
        self.base = [p.detach().clone() for p in family.denoiser.parameters()]

    def measure(self, num_samples: int) -> dict[str, Any]:
        numbers = super().measure(num_samples)
        away = sum(
            float((p.detach() - base).abs().sum())
            for p, base in zip(self.model.denoiser.parameters(), self.base, strict=True)
        )
        judge, content = 1 - abs(away - self.peak), 1 - 0.1 * max(0.0, away - self.peak)
        told = {
            **numbers,
            "photo_rate": {"value": judge, "low": 0.0, "high": 1.0, "n": num_samples},
            "content": {"value": content},
            "reward": judge,
            "away": away,
        }
        return {**told, "each": {"photo_rate": [judge] * self.run.evaluate.num_samples_during}}


STOP = {"max_degradation": {"content": 0.05}, "degradation_patience": 2}


def make_run(folder: Path, stop: dict[str, Any] | None = STOP, **train: Any) -> config.RunConfig:
    """Measured after every update; it would go on for 30."""
    run = stubs.make_run(
        folder / "prompts.txt", **{"num_steps": 30, "save_every": 4, "sample_every": 0, **train}
    )
    evaluate = config.EvaluateConfig(judge="world", every=1, num_samples=4, num_samples_during=4)
    return run.model_copy(
        update={
            "evaluate": evaluate,
            "early_stopping": config.EarlyStoppingConfig.model_validate(stop)
            if stop is not None
            else None,
        }
    )


def start(
    run: config.RunConfig, out: Path, resume: bool = False, peak: float = 1.2, **method: Any
) -> stubs.StubModel:
    run_folder.check(out, resume)
    run_folder.make(out)
    family, ranks = stubs.StubModel(full=run.model.tune == "full"), TorchProcessGroup()
    loaded = stubs.load(run, family, ranks, **method)
    train_loaded(
        run,
        out,
        resume,
        ranks,
        Loaded(family, loaded.method, Measurer(family, run, peak), loaded.data),
    )
    return family


def event(out: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in run_log.read(out) if record["event"] == name]


def left(out: Path) -> tuple[bytes, list[dict[str, Any]], Any]:
    """Everything that a run leaves that must not depend on how often it was interrupted."""
    summary = json.loads((out / "summary.json").read_text())
    return (
        (out / "lora.safetensors").read_bytes(),
        without_timings(out),
        [summary["stopped"], summary["kept"]["step"]],
    )


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_stops_itself_and_leaves_its_best_weights(
    tmp_path: Path, ema: float | None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    start(make_run(tmp_path, ema_decay=ema), out)
    (stopped,), (left_record,) = event(out, "stop"), event(out, "kept")
    measured = {record["step"]: record for record in event(out, "evaluate")}
    within = {
        step: each["photo_rate"]["value"]
        for step, each in measured.items()
        if each["content"]["value"] >= 0.95
    }
    assert (
        stopped["reason"] == "drift"
        and 0 < stopped["step"] < 30
        and stopped["step"] == max(steps(out, "step")) == max(measured)
    )
    assert stopped["kept"] == left_record["step"] == max(within, key=lambda step: within[step])
    assert (
        measured[stopped["step"]]["content"]["value"]
        < 0.95
        > measured[stopped["step"] - 1]["content"]["value"]
    )
    saved = load_file(out / "lora.safetensors")["base"]
    assert float((saved - torch.eye(stubs.SIZE)).abs().sum()) == pytest.approx(
        left_record["away"], abs=1e-5
    )
    summary = json.loads((out / "summary.json").read_text())
    assert (
        summary["stopped"] == stopped
        and summary["after"] == left_record
        and summary["before"]["step"] == 0
    )
    assert (
        summary["kept"]["step"] == stopped["kept"]
        and summary["kept"]["judge"] == "photo_rate"
        and summary["kept"]["used"]["content"] <= 1
    )
    said = capsys.readouterr().out
    assert (
        f"stopped after step {stopped['step']} of 30: max_degradation exceeded: content"
        in said
    )
    assert (
        f"exported the weights of step {stopped['kept']}: photo_rate" in said
        and "budget" in said.split("stopped after")[0]
    )


def test_a_run_that_gets_to_its_end_leaves_its_best_weights_too(tmp_path: Path):
    out = tmp_path / "out"
    start(make_run(tmp_path, {}, num_steps=9), out)
    assert (
        event(out, "stop") == []
        and json.loads((out / "summary.json").read_text())["stopped"] is None
    )
    (record,) = event(out, "kept")
    best = max(event(out, "evaluate"), key=lambda each: each["photo_rate"]["value"])
    assert record["step"] == best["step"] < 9 and record["photo_rate"] == best["photo_rate"]


def test_without_the_rules_nothing_is_new(tmp_path: Path):
    out = tmp_path / "out"
    start(make_run(tmp_path, None, num_steps=5), out)
    found = json.loads((out / "summary.json").read_text())
    assert (
        not (out / "best").exists()
        and found["stopped"] is None
        and found["kept"] is None
        and found["after"]["step"] == 5
    )
    assert {record["event"] for record in run_log.read(out)} == {"step", "evaluate"}


def test_the_base_model_is_left_where_nothing_was_better_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    start(make_run(tmp_path), out, peak=-0.5)
    assert event(out, "kept")[0]["step"] == 0 and torch.equal(
        load_file(out / "lora.safetensors")["base"], torch.eye(stubs.SIZE)
    )
    assert (
        "warning: no step was both within early_stopping.max_degradation and better by photo_rate: exported the base model"
        in capsys.readouterr().out
    )


def test_only_weights_that_can_still_be_chosen_take_up_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counts, real = [], early_stopping.drop_best
    monkeypatch.setattr(
        early_stopping,
        "drop_best",
        lambda out, needed: (real(out, needed), counts.append(len(early_stopping.best_steps(out)))),
    )
    start(
        make_run(tmp_path, {}, num_steps=12, save_every=3, keep_checkpoints=2),
        tmp_path / "out",
        peak=9.0,
    )
    assert max(counts) <= 3 and counts[-1] >= 1


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_signal_loses_nothing(tmp_path: Path, stop: int):
    run = make_run(tmp_path, ema_decay=0.5)
    start(run, tmp_path / "whole")
    with pytest.raises(Interrupted):
        start(run, tmp_path / "broken", on_step=stop_at(stop))
    start(run, tmp_path / "broken", resume=True)
    assert left(tmp_path / "broken") == left(tmp_path / "whole")


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_killed_anywhere_it_stops_where_it_would_have(tmp_path: Path, tune: str):
    run = make_run(tmp_path, save_every=2, tune=tune)
    begun = time.perf_counter()
    assert finished(forked(lambda: start(run, tmp_path / "whole", peak=0.4))) == 0
    duration, wanted, moments = (
        time.perf_counter() - begun,
        left(tmp_path / "whole"),
        random.Random(tune),
    )
    for attempt in range(3):
        out = tmp_path / f"killed-{attempt}"
        child = forked(lambda out=out: start(run, out, peak=0.4))
        time.sleep(moments.uniform(0.3, 1.0) * duration)
        os.kill(child, signal.SIGKILL)
        finished(child)
        resume = (out / "run.yaml").exists()
        assert (
            finished(forked(lambda out=out, resume=resume: start(run, out, resume, peak=0.4))) == 0
        ), f"attempt {attempt}"
        assert left(out) == wanted, f"attempt {attempt}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start(make_run(folder, save_every=1), folder / "out")
    return folder / "out"


def interrupt_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool) -> None:
    """Ctrl-C just before or just after the first call of a function, once."""
    real, calls = getattr(owner, name), []

    def broken(*given: Any, **named: Any) -> Any:
        if calls:
            return real(*given, **named)
        calls.append(name)
        if after:
            real(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (early_stopping.EarlyStopping, "load_best"),
        (run_module, "_evaluate_exported"),
        (early_stopping, "stop_record"),
        (early_stopping, "save_best"),
        (early_stopping, "drop_best"),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_an_interrupt_anywhere_loses_nothing(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
):
    run = make_run(tmp_path, save_every=1)
    interrupt_in(monkeypatch, owner, name, after)
    with pytest.raises(KeyboardInterrupt):
        start(run, tmp_path / "broken")
    monkeypatch.undo()
    start(run, tmp_path / "broken", resume=True)
    assert left(tmp_path / "broken") == left(undisturbed)


def test_resuming_a_run_that_stopped_changes_nothing_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, out = make_run(tmp_path), tmp_path / "out"
    start(run, out)
    before = (out / "metrics.jsonl").read_bytes(), (out / "lora.safetensors").read_bytes()
    capsys.readouterr()
    start(run, out, resume=True)
    assert ((out / "metrics.jsonl").read_bytes(), (out / "lora.safetensors").read_bytes()) == before
    assert (
        "stopped after step" in (said := capsys.readouterr().out)
        and "to continue, change early_stopping and use --resume" in said
    )


def test_it_goes_on_when_the_rules_are_changed(tmp_path: Path):
    out = tmp_path / "out"
    start(make_run(tmp_path, num_steps=20), out)
    ended = event(out, "stop")[0]["step"]
    start(make_run(tmp_path, {"max_degradation": {"content": 9.0}}, num_steps=20), out, resume=True)
    assert (
        max(steps(out, "step")) == 20 > ended
        and event(out, "stop") == []
        and len(event(out, "kept")) == 1
    )
    assert steps(out, "step") == list(range(1, 21))


def test_rules_that_are_tightened_end_it_at_once_with_what_is_there(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        start(make_run(tmp_path, {"max_degradation": {"content": 9.0}}), out, on_step=stop_at(9))
    start(
        make_run(tmp_path, {"max_degradation": {"content": 1e-6}, "degradation_patience": 1}),
        out,
        resume=True,
    )
    assert event(out, "stop")[0]["step"] == 10 and event(out, "kept")[0]["step"] in (
        0,
        *early_stopping.best_steps(out),
    )


def test_rules_may_come_later_and_be_taken_out_again(tmp_path: Path):
    out = tmp_path / "out"
    start(make_run(tmp_path, None, num_steps=8), out)
    start(make_run(tmp_path, num_steps=30), out, resume=True)
    assert len(event(out, "stop")) == 1 and event(out, "kept")[0]["step"] >= 8
    start(make_run(tmp_path, None, num_steps=14), out, resume=True)
    assert event(out, "stop") == event(out, "kept") == [] and max(steps(out, "step")) == 14


def test_other_pairs_are_refused_where_they_would_be_compared(tmp_path: Path):
    out = tmp_path / "out"
    start(make_run(tmp_path), out)
    run = make_run(tmp_path)
    fewer = run.model_copy(
        update={"evaluate": run.evaluate.model_copy(update={"num_samples_during": 2})}
    )
    with pytest.raises(
        DirectAlignError,
        match=r"evaluate\.num_samples_during was 4 and is 2, and early_stopping compares all evaluations with the first",
    ):
        start(fewer, out, resume=True)


def test_damaged_weights_are_named_and_the_best_of_the_others_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, out = make_run(tmp_path, save_every=1, keep_checkpoints=9), tmp_path / "out"
    start(run, out)
    best = event(out, "kept")[0]["step"]
    file = early_stopping.best_path(out, best) / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    start(run, out, resume=True)
    said = capsys.readouterr().out
    assert (
        f"removed damaged weights: {early_stopping.best_path(out, best)} (weights.safetensors has"
        in said
    )
    assert (
        event(out, "kept")[0]["step"] != best
        and atomic.damage(early_stopping.best_path(out, event(out, "kept")[0]["step"])) is None
    )


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, real = make_run(tmp_path), checkpoint.write_tensors
    start(run, tmp_path / "whole")

    def full(folder: Path, groups: Any, ranks: TorchProcessGroup) -> None:
        if "best" in str(folder) and "step-000000" not in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, groups, ranks)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(
        DirectAlignError,
        match=r"cannot write best weights .*/best/step-.*: no space left on the disk; free some space and continue with --resume",
    ):
        start(run, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out" / "best").glob(".partial-*"))
    start(run, tmp_path / "out", resume=True)
    assert left(tmp_path / "out") == left(tmp_path / "whole")


def test_a_loss_that_is_not_finite_leaves_the_best_weights(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(NonFiniteError, match=r"the best weights so far are .*best/step-"):
        start(
            make_run(tmp_path),
            out,
            spoil=lambda value, step, branch: value * float("nan") if step == 4 else value,
        )
    assert all(
        atomic.damage(early_stopping.best_path(out, step)) is None
        for step in early_stopping.best_steps(out)
    ) and early_stopping.best_steps(out)
