"""Whole stub runs with stop rules: where they end, what they export, and exact resumes."""

import json
import sys
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
import train_stubs as stubs
from launching import records
from safetensors.torch import load_file
from train_stubs import StubModel, nan_at, steps

from directalign import config
from directalign.io import atomic
from directalign.training import early_stopping, run_log
from directalign.types import DirectAlignError, NonFiniteError

RUN_MODULE = sys.modules["directalign.training.run"]
STOP = {"max_degradation": {"content": 0.05}, "degradation_patience": 2}
WEIGHTS = "lora.safetensors"


class Evaluator(stubs.StubEvaluator):
    """By distance from the base weights: the judge peaks at `peak`, content falls beyond it."""

    def __init__(self, model: StubModel, num_samples: int, peak: float) -> None:
        super().__init__(model)
        self.num_samples, self.peak = num_samples, peak
        self.base = [p.detach().clone() for p in model.denoiser.parameters()]

    def measure(self, num_samples: int) -> dict[str, Any]:
        numbers = super().measure(num_samples)
        pairs = zip(self.model.denoiser.parameters(), self.base, strict=True)
        distance = sum(float((p.detach() - base).abs().sum()) for p, base in pairs)
        judge, content = 1 - abs(distance - self.peak), 1 - 0.1 * max(0.0, distance - self.peak)
        return {
            **numbers,
            "photo_rate": {"value": judge, "low": 0.0, "high": 1.0, "n": num_samples},
            "content": {"value": content},
            "reward": judge,
            "distance": distance,
            "each": {"photo_rate": [judge] * self.num_samples},
        }


def make_run(folder: Path, stop: dict[str, Any] | None = STOP, **train: Any) -> config.RunConfig:
    """Up to 30 steps, evaluated after each."""
    settings = {"num_steps": 30, "save_every": 4, "sample_every": 0, **train}
    run = stubs.make_run(folder / "prompts.txt", **settings)
    measured = {"num_samples": 4, "num_samples_during": 4, "references": False}
    evaluate = config.EvaluateConfig(judge="world", every=1, **measured)
    rules = config.EarlyStoppingConfig.model_validate(stop) if stop is not None else None
    return run.model_copy(update={"evaluate": evaluate, "early_stopping": rules})


def start(
    run: config.RunConfig, out: Path, resume: bool = False, peak: float = 1.2, **method: Any
) -> StubModel:
    num_samples = run.evaluate.num_samples_during
    return stubs.start(run, out, resume, lambda m: Evaluator(m, num_samples, peak), **method)


def event(out: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in run_log.read(out) if record["event"] == name]


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def results(out: Path) -> tuple[bytes, list[dict[str, Any]], Any]:
    """What must not depend on how often a run was interrupted."""
    summary = summary_of(out)
    end = summary["stopped"], summary["kept"]["step"]
    return (out / WEIGHTS).read_bytes(), records(out), end


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    start(make_run(folder, save_every=1), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_stops_and_exports_its_best_weights(tmp_path, ema, capsys):
    run, out = make_run(tmp_path, ema_decay=ema), tmp_path / "out"
    start(run, out)
    (stopped,), (exported,) = event(out, "stop"), event(out, "kept")
    measured = {record["step"]: record for record in event(out, "evaluate")}
    content = {step: each["content"]["value"] for step, each in measured.items()}
    last = stopped["step"]
    assert stopped["reason"] == "drift" and last == max(steps(out, "step")) == max(measured) < 30
    assert content[last] < 0.95 > content[last - 1]
    within = [step for step in measured if content[step] >= 0.95]
    best = max(within, key=lambda step: measured[step]["photo_rate"]["value"])
    assert stopped["kept"] == exported["step"] == best
    distance = float((load_file(out / WEIGHTS)["base"] - torch.eye(stubs.SIZE)).abs().sum())
    assert distance == pytest.approx(exported["distance"], abs=1e-5)
    summary = summary_of(out)
    assert summary["stopped"] == stopped and summary["after"] == exported
    assert summary["before"]["step"] == 0 and summary["kept"]["used"]["content"] <= 1
    assert (summary["kept"]["step"], summary["kept"]["judge"]) == (best, "photo_rate")
    output = capsys.readouterr().out
    assert f"stopped after step {last} of 30: max_degradation exceeded: content" in output
    assert f"exported the weights of step {best}: photo_rate" in output

    before = (out / "metrics.jsonl").read_bytes(), (out / WEIGHTS).read_bytes()
    start(run, out, resume=True)
    assert ((out / "metrics.jsonl").read_bytes(), (out / WEIGHTS).read_bytes()) == before
    assert "to continue, change early_stopping and use --resume" in capsys.readouterr().out


def test_the_base_model_is_exported_if_nothing_was_better(tmp_path, capsys):
    out = tmp_path / "out"
    start(make_run(tmp_path), out, peak=-0.5)
    assert event(out, "kept")[0]["step"] == 0
    assert torch.equal(load_file(out / WEIGHTS)["base"], torch.eye(stubs.SIZE))
    assert "better by photo_rate: exported the base model" in capsys.readouterr().out


# --- interrupted runs -----------------------------------------------------------------------------


def test_a_killed_run_stops_at_the_same_step(tmp_path):
    run = make_run(tmp_path, save_every=2, tune="lora")
    for out in launching.kill_and_resume(lambda out, go: start(run, out, go, 0.4), tmp_path, 2):
        assert results(out) == results(tmp_path / "whole"), out


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [(RUN_MODULE, "_evaluate_exported", False), (early_stopping, "save_best", True)],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_an_interrupt_anywhere_changes_nothing(whole, tmp_path, monkeypatch, owner, name, after):
    """Ctrl-C before or after the first call of a function."""
    run, real, calls = make_run(tmp_path, save_every=1), getattr(owner, name), list[str]()

    def interrupted(*given: Any, **named: Any) -> Any:
        if calls:
            return real(*given, **named)
        calls.append(name)
        if after:
            real(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(run, tmp_path / "broken")
    monkeypatch.undo()
    start(run, tmp_path / "broken", resume=True)
    assert results(tmp_path / "broken") == results(whole)


def test_a_loss_that_is_not_finite_leaves_the_best_weights(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(NonFiniteError, match=r"the best weights so far are .*best/step-"):
        start(make_run(tmp_path), out, spoil=nan_at(4))
    saved = early_stopping.best_steps(out)
    assert saved and all(not atomic.damage(early_stopping.best_path(out, s)) for s in saved)


def test_damaged_best_weights_are_replaced_by_the_best_others(tmp_path, capsys):
    run, out = make_run(tmp_path, save_every=1, keep_checkpoints=9), tmp_path / "out"
    start(run, out)
    best = early_stopping.best_path(out, event(out, "kept")[0]["step"])
    file = best / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    start(run, out, resume=True)
    assert f"damaged weights: {best} (weights.safetensors has" in capsys.readouterr().out
    other = early_stopping.best_path(out, event(out, "kept")[0]["step"])
    assert other != best and atomic.damage(other) is None


# --- changed rules --------------------------------------------------------------------------------


def test_looser_rules_continue_a_stopped_run_and_tighter_ones_end_it(tmp_path):
    out, loose = tmp_path / "out", {"max_degradation": {"content": 9.0}}
    start(make_run(tmp_path, num_steps=20), out)
    assert event(out, "stop")[0]["step"] < 20
    start(make_run(tmp_path, loose, num_steps=20), out, resume=True)
    assert steps(out, "step") == list(range(1, 21))
    assert event(out, "stop") == [] and len(event(out, "kept")) == 1
    tight = {"max_degradation": {"content": 1e-6}, "degradation_patience": 1}
    start(make_run(tmp_path, tight, num_steps=21), out, resume=True)
    assert event(out, "stop")[0]["step"] == 20
    assert event(out, "kept")[0]["step"] in (0, *early_stopping.best_steps(out))


def test_rules_may_be_added_and_removed(tmp_path):
    out = tmp_path / "out"
    start(make_run(tmp_path, None, num_steps=8), out)
    start(make_run(tmp_path, num_steps=30), out, resume=True)
    assert len(event(out, "stop")) == 1 and event(out, "kept")[0]["step"] >= 8
    start(make_run(tmp_path, None, num_steps=14), out, resume=True)
    assert event(out, "stop") == event(out, "kept") == [] and max(steps(out, "step")) == 14


def test_other_samples_are_refused(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    start(run, out)
    evaluate = run.evaluate.model_copy(update={"num_samples_during": 2})
    message = r"evaluate\.num_samples_during 4 -> 2; restore these values"
    with pytest.raises(DirectAlignError, match=message):
        start(run.model_copy(update={"evaluate": evaluate}), out, resume=True)
