"""Every method writes the same records, resumes to the same bits and refuses the same mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from launching import records
from safetensors.torch import load_file

import tiny
from directalign import config
from directalign.config.load import load_run
from directalign.methods import METHODS, method_class
from directalign.preflight import plan
from directalign.training import Interrupted, loop
from directalign.training import run as train
from directalign.types import Batch, DirectAlignError, LossTerm, NonFiniteError

BATCH_SIZE, NUM_INFERENCE_STEPS = 2, 3
SRPO = {
    "form": "absolute",
    "noise_levels": {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "srpo": SRPO,
    "draft": {"grad_steps": 2},
    "flow_grpo": {"group_size": 2, "updates_per_rollout": 2},
}
KL: dict[str, Any] = {"name": "srpo", **SRPO, "kl_beta": 5.0}
RIVALS = [name for name in METHODS if name != "srpo"]
FILES = {"lora": "lora.safetensors", "full": "unet/diffusion_pytorch_model.safetensors"}
STEP = {
    *("event", "step", "loss", "reward", "losses", "metrics", "grad_norm", "nfe"),
    *("learning_rate", "levels"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion and its prompts."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_sd(folder / "model")
    (folder / "prompts.txt").write_text("a red star\na blue circle\na green square")
    return folder


def recipe(folder: Path, method: dict[str, Any], tune: str = "lora", **more: Any) -> dict[str, Any]:
    lora = {"rank": 2, "alpha": 2}
    model = {"architecture": "sd", "path": str(folder / "model"), "tune": tune, "lora": lora}
    return {
        "name": "tiny",
        "model": model,
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": method,
        "rollout": {"num_inference_steps": NUM_INFERENCE_STEPS},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": BATCH_SIZE},
        "train": {
            "num_steps": 4,
            "learning_rate": 1e-2,
            "max_grad_norm": 1.0,
            "save_every": 1,
            "keep_checkpoints": 9,
        },
        "evaluate": {"num_samples": 1, "batch_size": 2},
        **more,
    }


def recipe_of(folder: Path, name: str) -> dict[str, Any]:
    return recipe(folder, {"name": name, **SETTINGS.get(name, {})})


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str, str], tuple[config.RunConfig, Path]]:
    """An uninterrupted run by method ("kl": SRPO with kl_beta) and tune mode."""

    @cache
    def run(name: str, tune: str) -> tuple[config.RunConfig, Path]:
        method = KL if name == "kl" else {"name": name, **SETTINGS.get(name, {})}
        validated = config.RunConfig.model_validate(recipe(folder, method, tune))
        return validated, train(validated, folder / f"{name}-{tune}", resume=False)

    return run


@pytest.mark.parametrize(
    ("name", "tune"),
    [*((name, "lora") for name in METHODS), ("srpo", "full"), ("kl", "lora"), ("kl", "full")],
)
def test_records_and_exact_resume(
    whole: Callable[..., tuple[config.RunConfig, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tune: str,
) -> None:
    """Stopped before the fourth step: with two updates per rollout, in the middle of one.

    With all weights trained, the checkpoint's model is no longer the base of the KL term.
    """
    run, out = whole(name, tune)
    found, real = records(out, "step"), loop.train_step
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    assert all(set(record) == STEP and record["grad_norm"] > 0 for record in found)
    assert all(record["nfe"]["forward"] >= record["nfe"]["backward"] > 0 for record in found)

    def stopped(context: loop.TrainContext, step: int, batches: Any) -> dict[str, Any]:
        if step == 3:
            raise Interrupted("stopped before the fourth step")
        return real(context, step, batches)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stopped)
        train(run, tmp_path / "out", resume=False)
    train(run, tmp_path / "out", resume=True)
    assert records(tmp_path / "out", "step") == found
    assert (tmp_path / "out" / FILES[tune]).read_bytes() == (out / FILES[tune]).read_bytes()


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_kl_needs_one_more_forward_pass_and_keeps_the_model_close(
    whole: Callable[..., tuple[config.RunConfig, Path]], folder: Path, tmp_path: Path, tune: str
) -> None:
    out = whole("kl", tune)[1]
    steps, branches, weak = records(out, "step"), 2, {**KL, "kl_beta": 1e-6}
    kl = [record["metrics"]["kl"] for record in steps]
    assert kl[0] == 0 and all(value > 1e-6 for value in kl[1:])
    for record in steps:
        assert all("kl" in row for rows in record["levels"].values() for row in rows)
        assert record["nfe"] == {
            "forward": BATCH_SIZE * (NUM_INFERENCE_STEPS + 2 * branches),
            "backward": BATCH_SIZE * branches,
        }
    train(
        config.RunConfig.model_validate(recipe(folder, weak, tune)), tmp_path / "out", resume=False
    )
    assert kl[-1] < records(tmp_path / "out", "step")[-1]["metrics"]["kl"]


def test_kl_with_guidance_takes_two_passes_of_the_base(folder: Path, tmp_path: Path) -> None:
    run = config.RunConfig.model_validate(recipe(folder, {**KL, "cfg_scale": 3.0}))
    train(run, tmp_path / "out", resume=False)
    steps, branches, passes = records(tmp_path / "out", "step"), 2, 2
    assert steps[0]["nfe"] == {
        "forward": BATCH_SIZE * (NUM_INFERENCE_STEPS + 2 * branches * passes),
        "backward": BATCH_SIZE * branches * passes,
    }
    assert steps[0]["metrics"]["kl"] == 0 < steps[-1]["metrics"]["kl"]


def test_kl_with_a_base_in_8_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("directalign.models.quantization.SMALLEST", 64)  # layers are tiny
    given = recipe(folder, {**KL, "embedded_guidance": 1.0})
    given["model"] |= {
        "architecture": "flux",
        "path": str(tiny.write_flux(tmp_path / "flux")),
        "dtype": "bfloat16",
        "quantization": "8bit",
        "gradient_checkpointing": True,
    }
    given["rollout"] |= {"embedded_guidance": 1.0}
    train(config.RunConfig.model_validate(given), tmp_path / "out", resume=False)
    kl = [record["metrics"]["kl"] for record in records(tmp_path / "out", "step")]
    assert kl[0] == 0 < kl[-1]
    assert load_file(tmp_path / "out" / FILES["lora"])


def test_unfinished_rollouts_need_the_same_batch_layout(folder: Path, tmp_path: Path) -> None:
    given = recipe_of(folder, "flow_grpo")
    given["train"] |= {"num_steps": 3}
    train(config.RunConfig.model_validate(given), tmp_path / "out", resume=False)
    given["train"] |= {"num_steps": 4, "gradient_accumulation_steps": 2}
    given["data"] |= {"batch_size": 1}
    message = r"holds unfinished rollouts .*for 1 ranks with data\.batch_size 2"
    with pytest.raises(DirectAlignError, match=message):
        train(config.RunConfig.model_validate(given), tmp_path / "out", resume=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_stops_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run, method = config.RunConfig.model_validate(recipe_of(folder, name)), method_class(name)
    real = method.losses

    def losses(self: Any, batch: Batch) -> Iterator[LossTerm]:
        for loss in real(self, batch):
            factor = float("inf") if batch.step == 1 else 1.0
            yield LossTerm(loss.value * factor, loss.branch, loss.metrics, loss.levels)

    monkeypatch.setattr(method, "losses", losses)
    message = r"step 2: the loss is (inf|-inf|nan) \(branch .*last checkpoint is .*step-000001"
    with pytest.raises(NonFiniteError, match=message):
        train(run, tmp_path / "out", resume=False)
    assert len(records(tmp_path / "out", "step")) == 1


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"images": "somewhere"}}, "trains on samples of its own: remove data.images"),
        (
            {"method": {"form": "relative"}},
            "give control_phrases.positive and control_phrases.negative",
        ),
        ({"method": {"branches": "both"}}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    folder: Path, name: str, change: dict[str, Any], message: str
) -> None:
    given = recipe_of(folder, name)
    for section, values in change.items():
        given[section] |= values
    with pytest.raises(ValueError, match=message):
        config.RunConfig.model_validate(given)


@pytest.mark.parametrize("name", RIVALS)
def test_a_reward_of_pixels_has_no_relative_form(folder: Path, tmp_path: Path, name: str) -> None:
    given = recipe_of(folder, name)
    phrases = {"positive": ["Photo"], "negative": ["Render"]}
    given["method"] |= {"form": "anchored", "control_phrases": phrases}
    with pytest.raises(DirectAlignError, match=r"reward\.name: pixels ignores prompts"):
        plan(config.RunConfig.model_validate(given), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("refl", "last_steps"),
        ("draft", "grad_steps"),
        ("alignprop", "max_grad_steps"),
        ("drtune", "trained_steps"),
        ("flowbp", "trained_steps"),
    ],
)
def test_no_more_steps_are_trained_than_sampled(folder: Path, name: str, field: str) -> None:
    message = rf"method\.{field} 4 is more than rollout\.num_inference_steps 3: lower it"
    with pytest.raises(ValueError, match=message):
        config.RunConfig.model_validate(recipe(folder, {"name": name, field: 4}))


def test_the_default_method_is_srpo_and_another_name_replaces_the_section() -> None:
    srpo = load_run("world_srpo", [])
    assert srpo.method.name == "srpo"
    refl = load_run("world_srpo", ["method.name=refl", "method.last_steps=3"])
    assert refl.method == config.ReFLConfig(last_steps=3)
    assert load_run("world_srpo", ["method.name=srpo"]).method == srpo.method
