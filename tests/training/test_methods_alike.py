"""Every method, not SRPO alone, survives the same bad inputs, leaves the same records and resumes to the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from directalign.preflight.checks import plan

import tiny
from directalign import config
from directalign.config.load import load_run
from directalign.methods import METHODS, method_class
from directalign.training import Interrupted, loop
from directalign.training import run as train
from directalign.types import Batch, DirectAlignError, LossTerm, NonFiniteError

WORDS = {"positive": ["Photo"], "negative": ["Render"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "srpo": {
        "form": "absolute",
        "noise_levels": {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1},
    },
    "draft": {"grad_steps": 2},
    "flow_grpo": {"group_size": 2, "updates_per_rollout": 2},
}
RIVALS = [name for name in METHODS if name != "srpo"]
STEP = {
    "event",
    "step",
    "loss",
    "reward",
    "losses",
    "metrics",
    "grad_norm",
    "nfe",
    "learning_rate",
    "levels",
    "seconds",
    "phases",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sd(tmp_path_factory.mktemp("tiny") / "model")


def given(folder: Path, model: Path, name: str) -> dict[str, Any]:
    prompts = folder / "prompts.txt"
    prompts.write_text("a red star\na blue circle\na green square")
    return {
        "name": name,
        "model": {
            "architecture": "sd",
            "path": str(model),
            "tune": "lora",
            "lora": {"rank": 2, "alpha": 2},
        },
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"name": name, **SETTINGS.get(name, {})},
        "rollout": {"num_inference_steps": 3},
        "data": {"prompts": str(prompts), "batch_size": 2},
        "train": {
            "num_steps": 4,
            "learning_rate": 1e-2,
            "max_grad_norm": 1.0,
            "save_every": 1,
            "keep_checkpoints": 9,
        },
        "evaluate": {"num_samples": 1, "batch_size": 2},
    }


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [
        record
        for line in (out / "metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["event"] == "step"
    ]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("seconds", "phases")}


@pytest.mark.parametrize("name", METHODS)
def test_records_alike_and_resumes_to_the_same_bits(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Stopped after the third of four updates: for a policy gradient with two updates to a rollout, in the middle of one."""
    run = config.RunConfig.model_validate(given(tmp_path, model, name))
    train(run, tmp_path / "whole", resume=False)
    records = steps_of(tmp_path / "whole")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(set(record) == STEP for record in records)
    assert all(
        record["nfe"]["forward"] >= record["nfe"]["backward"] > 0
        for record in records
    )
    assert all(record["grad_norm"] > 0 for record in records)

    real = loop.train_step

    def stopped(context: loop.TrainContext, step: int, batches: Any) -> dict[str, Any]:
        if step == 3:
            raise Interrupted("stopped before the fourth update")
        return real(context, step, batches)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stopped)
        train(run, tmp_path / "broken", resume=False)
    train(run, tmp_path / "broken", resume=True)
    assert (tmp_path / "broken/lora.safetensors").read_bytes() == (
        tmp_path / "whole/lora.safetensors"
    ).read_bytes()
    assert [untimed(record) for record in steps_of(tmp_path / "broken")] == [
        untimed(record) for record in records
    ]


def test_rollouts_that_are_gone_on_with_belong_to_their_share_of_the_batch(
    tmp_path: Path, model: Path
) -> None:
    recipe = given(tmp_path, model, "flow_grpo")
    recipe["train"] |= {"num_steps": 3}
    train(config.RunConfig.model_validate(recipe), tmp_path / "out", resume=False)
    recipe["train"] |= {"num_steps": 4, "gradient_accumulation_steps": 2}
    recipe["data"] |= {"batch_size": 1}
    with pytest.raises(
        DirectAlignError,
        match=r"holds unfinished rollouts .*for 1 ranks with data\.batch_size 2",
    ):
        train(config.RunConfig.model_validate(recipe), tmp_path / "out", resume=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_stops_the_step_by_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = config.RunConfig.model_validate(given(tmp_path, model, name))
    method = method_class(name)
    real = method.losses

    def losses(self: Any, batch: Batch) -> Iterator[LossTerm]:
        for loss in real(self, batch):
            yield (
                LossTerm(loss.value * float("inf"), loss.branch, loss.metrics, loss.levels)
                if batch.step == 1
                else loss
            )

    monkeypatch.setattr(method, "losses", losses)
    with pytest.raises(
        NonFiniteError,
        match=r"step 2: the loss is (inf|-inf|nan) \(branch .*the last checkpoint is .*step-000001",
    ):
        train(run, tmp_path / "out", resume=False)
    assert len(steps_of(tmp_path / "out")) == 1


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": {"images": "somewhere"}}, "trains on samples of its own: remove data.images"),
        ({"method": {"form": "relative"}}, "give control_phrases.positive and control_phrases.negative"),
        ({"method": {"branches": "both"}}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, model: Path, name: str, change: dict[str, Any], complaint: str
) -> None:
    recipe = given(tmp_path, model, name)
    for section, values in change.items():
        recipe[section] = {**recipe[section], **values}
    with pytest.raises(ValueError, match=complaint):
        config.RunConfig.model_validate(recipe)


@pytest.mark.parametrize("name", RIVALS)
def test_a_prompt_blind_reward_has_no_relative_form(tmp_path: Path, model: Path, name: str) -> None:
    recipe = given(tmp_path, model, name)
    recipe["method"] |= {"form": "anchored", "control_phrases": WORDS}
    with pytest.raises(DirectAlignError, match=r"reward\.name: pixels ignores prompts"):
        plan(config.RunConfig.model_validate(recipe), tmp_path / "out")


@pytest.mark.parametrize(
    "key",
    [
        "refl.last_steps",
        "draft.grad_steps",
        "alignprop.max_grad_steps",
        "drtune.trained_steps",
        "flowbp.trained_steps",
    ],
)
def test_no_more_steps_train_than_are_sampled(tmp_path: Path, model: Path, key: str) -> None:
    name, field = key.split(".")
    recipe = given(tmp_path, model, name)
    recipe["method"] = {"name": name, field: 4}
    with pytest.raises(
        ValueError,
        match=rf"method\.{field} 4 is more than rollout\.num_inference_steps 3: lower it",
    ):
        config.RunConfig.model_validate(recipe)


def test_method_is_srpo_when_it_is_not_named_and_another_name_replaces_the_section() -> None:
    srpo = load_run("world_srpo", [])
    assert srpo.method.name == "srpo"
    refl = load_run("world_srpo", ["method.name=refl", "method.last_steps=3"])
    assert refl.method == config.ReFLConfig(last_steps=3)
    assert load_run("world_srpo", ["method.name=srpo"]).method == srpo.method
