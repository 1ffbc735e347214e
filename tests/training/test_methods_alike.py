"""Every method writes the same records, resumes to the same bits and refuses the same mistakes."""

import json
import shutil
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from launching import records
from PIL import Image
from safetensors.torch import load_file

import tiny
from directalign import config
from directalign.methods import METHODS
from directalign.preflight import plan
from directalign.training import run as train
from directalign.types import DirectAlignError

BATCH_SIZE, NUM_INFERENCE_STEPS = 2, 3
SRPO = {
    "form": "absolute",
    "noise_levels": {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "srpo": SRPO,
    "prompt_distillation": {"control_phrases": {"positive": ["Photo"]}},
    "draft": {"grad_steps": 2},
    "flow_grpo": {"group_size": 2, "updates_per_rollout": 2},
    "raft": {"candidates": 2},
    "diffusion_nft": {"group_size": 2, "old_decay": 0.5, "old_decay_rise": 0.3},
    "awm": {"group_size": 2, "old_decay": 0.5, "old_decay_rise": 0.3},
}
TRAIN = {"num_steps": 3, "learning_rate": 1e-2, "max_grad_norm": 1.0, "save_every": 1}
TRAIN |= {"sample_prompts": ["a red star"]}
REUSE = "reused "
"""Before the name of a method: two updates per rollout."""
KL: dict[str, Any] = {"name": "srpo", **SRPO, "kl_beta": 5.0}
NAMES = [name for name in METHODS if name != "python"]  # "python" is a file of the user
FILES = {"lora": "lora.safetensors", "full": "unet/diffusion_pytorch_model.safetensors"}
STEP = {
    *("event", "step", "loss", "reward", "losses", "metrics", "grad_norm", "nfe"),
    *("learning_rate", "levels"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion and its prompts."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_sd(folder / "model")
    (folder / "prompts.txt").write_text("a red star\na blue circle\na green square")
    for level in range(3):
        Image.new("RGB", (16, 16), (80 * level, 9, 90)).save(folder / f"{level}.png")
    pairs = [{"prompt": "a red star", "chosen": f"{n}.png", "rejected": "2.png"} for n in range(2)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def recipe(folder: Path, method: dict[str, Any], tune: str = "lora", **more: Any) -> dict[str, Any]:
    lora = {"rank": 2, "alpha": 2}
    model = {"architecture": "sd", "path": str(folder / "model"), "tune": tune, "lora": lora}
    data = {"prompts": str(folder / "prompts.txt")}
    if method["name"] == "dpo":
        data = {"pairs": str(folder / "pairs.jsonl")}
    return {
        "name": "tiny",
        "model": model,
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": method,
        "rollout": {"num_inference_steps": NUM_INFERENCE_STEPS},
        "data": {**data, "batch_size": BATCH_SIZE},
        "train": TRAIN,
        "evaluate": {"num_samples": 1, "batch_size": 2, "references": False},
        **more,
    }


def recipe_of(folder: Path, name: str) -> dict[str, Any]:
    return recipe(folder, {"name": name, **SETTINGS.get(name, {})})


def trained(given: dict[str, Any], out: Path, resume: bool = False) -> list[dict[str, Any]]:
    """The step records of a run."""
    train(config.RunConfig.model_validate(given), out, resume=resume)
    return records(out, "step")


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run by method ("kl": SRPO with kl_beta; see REUSE) and tune mode."""

    @cache
    def run(name: str, tune: str) -> tuple[dict[str, Any], Path]:
        own, out = name.removeprefix(REUSE), folder / f"{name}-{tune}"
        method = KL if own == "kl" else {"name": own, **SETTINGS.get(own, {})}
        given = recipe(folder, method, tune)
        if own != name:
            given["rollout"] |= {"reuse": 2}
        trained(given, out)
        return given, out

    return run


@pytest.mark.parametrize(
    ("name", "tune"),
    [
        *((name, "lora") for name in NAMES),
        *((REUSE + name, "lora") for name in ("srpo", "prompt_distillation", "raft")),
        *((name, "full") for name in ("srpo", "kl", "diffusion_nft", "dpo")),
        ("kl", "lora"),
    ],
)
def test_records_and_exact_resume(whole, tmp_path, name, tune):
    """Resumed after the first step: with two updates per rollout, in the middle of one.

    With all weights trained, the checkpoint's model is no longer the base of the KL term.
    """
    given, out = whole(name, tune)
    found, resumed = records(out, "step"), tmp_path / "out"
    assert [record["step"] for record in found] == [1, 2, 3]
    assert all(set(record) == STEP and record["grad_norm"] > 0 for record in found)
    assert all(record["nfe"]["forward"] >= record["nfe"]["backward"] > 0 for record in found)
    if name.startswith(REUSE):
        first, second, third = (record["nfe"]["forward"] for record in found)
        rollout = BATCH_SIZE * NUM_INFERENCE_STEPS * given["method"].get("candidates", 1)
        assert first == third == second + rollout

    shutil.copytree(out, resumed)
    for step in (2, 3):
        shutil.rmtree(resumed / "checkpoints" / f"step-00000{step}")
    (resumed / FILES[tune]).unlink()
    assert trained(given, resumed, resume=True) == found
    assert (resumed / FILES[tune]).read_bytes() == (out / FILES[tune]).read_bytes()


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_kl_needs_one_more_forward_pass_and_keeps_the_model_close(whole, folder, tmp_path, tune):
    steps, branches, weak = records(whole("kl", tune)[1], "step"), 2, {**KL, "kl_beta": 1e-6}
    kl = [record["metrics"]["kl"] for record in steps]
    assert kl[0] == 0 and all(value > 1e-6 for value in kl[1:])
    for record in steps:
        assert all("kl" in row for rows in record["levels"].values() for row in rows)
        assert record["nfe"] == {
            "forward": BATCH_SIZE * (NUM_INFERENCE_STEPS + 2 * branches),
            "backward": BATCH_SIZE * branches,
        }
    assert kl[-1] < trained(recipe(folder, weak, tune), tmp_path / "out")[-1]["metrics"]["kl"]


def test_kl_with_a_base_in_8_bits(folder, tmp_path, monkeypatch):
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
    kl = [record["metrics"]["kl"] for record in trained(given, tmp_path / "out")]
    assert kl[0] == 0 < kl[-1]
    assert load_file(tmp_path / "out" / FILES["lora"])


def test_unfinished_rollouts_need_the_same_batch_layout(whole, tmp_path):
    """Three steps of two updates per rollout end in the middle of one."""
    given, out = whole("flow_grpo", "lora")
    shutil.copytree(out, tmp_path / "out")
    train = given["train"] | {"num_steps": 4, "gradient_accumulation_steps": 2}
    given = given | {"train": train, "data": given["data"] | {"batch_size": 1}}
    message = r"holds unfinished rollouts .*for 1 ranks with data\.batch_size 2"
    with pytest.raises(DirectAlignError, match=message):
        trained(given, tmp_path / "out", resume=True)


@pytest.mark.parametrize("name", NAMES[2:])
def test_settings_that_do_not_fit_are_refused(folder, tmp_path, name):
    two = "needs control_phrases.positive and control_phrases.negative"
    images = "trains on rollouts only: remove data.images"
    if name == "dpo":
        images = "pairs take no other data: remove data.images"
    of_its_own = f"rollout.reuse: 2, and method {name} trains on the steps of a rollout of its own"
    given = recipe_of(folder, name)
    given["rollout"] |= {"reuse": 2}
    with nullcontext() if name == "raft" else pytest.raises(ValueError, match=of_its_own):
        config.RunConfig.model_validate(given)
    given["rollout"] |= {"reuse": 1, "training_steps": 2}
    own = f"rollout.training_steps: 2, and method {name} trains on the rollouts' own steps"
    with nullcontext() if name == "raft" else pytest.raises(ValueError, match=own):
        config.RunConfig.model_validate(given)
    given["rollout"] |= {"num_inference_steps": 3, "training_steps": None, "solver": "unipc"}
    own = f"rollout.solver: unipc, and method {name} trains on the Euler steps of a rollout"
    finished = name in ("raft", "diffusion_nft", "awm", "dpo")
    with nullcontext() if finished else pytest.raises(ValueError, match=own):
        config.RunConfig.model_validate(given)
    if name == "raft":
        given["method"]["noise_levels"] = {"kind": "rollout"}
        with pytest.raises(
            ValueError, match=r"method\.noise_levels of kind rollout trains on .*euler"
        ):
            config.RunConfig.model_validate(given)
    for section, values, message in (
        ("data", {"images": "somewhere"}, images),
        ("method", {"form": "relative"}, two),
        ("method", {"branches": "both"}, "Extra inputs"),
    ):
        given = recipe_of(folder, name)
        given[section] |= values
        with pytest.raises(ValueError, match=message):
            config.RunConfig.model_validate(given)
    given = recipe_of(folder, name)
    phrases = {"positive": ["Photo"], "negative": ["Render"]}
    given["method"] |= {"form": "anchored", "control_phrases": phrases}
    with pytest.raises(DirectAlignError, match=r"reward\.name: pixels ignores control phrases"):
        plan(config.RunConfig.model_validate(given), tmp_path / "out")
