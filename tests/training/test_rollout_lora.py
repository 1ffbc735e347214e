"""`rollout.lora`: sampled as by a model with this LoRA, trained and measured as without it."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import records
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn

from directalign import config
from directalign.diffusion.sampling import RolloutStart, sample_rollout
from directalign.methods import METHODS as NAMES
from directalign.methods import method_class
from directalign.models import load_model
from directalign.models.lora import has_adapters, trained
from directalign.models.lora_files import DOWN, UP
from directalign.models.rollout_lora import RolloutLoRA
from directalign.training import run as train
from directalign.types import Batch, DirectAlignError
from methods.toy import ToyReward
from models.cases import CASES
from tiny import SIZE

PROMPTS = ("a red star", "a blue ring")
BATCH = Batch(1, PROMPTS, seed=7)
SRPO = {
    "name": "srpo",
    "form": "absolute",
    "noise_levels": {"kind": "uniform", "sigma_high": 0.9, "sigma_low": 0.5, "jump": 0.1},
}
METHODS = [
    SRPO,
    {"name": "prompt_distillation", "control_phrases": {"positive": ["Photo"]}},
    {"name": "raft", "candidates": 2},
    {"name": "diffusion_nft", "group_size": 2},
    {"name": "awm", "group_size": 2},
]
UNET = "mid_block.attentions.0"
LAYERS = {
    "flux": ("transformer_blocks.0.attn.to_q", "norm_out.linear", "x_embedder"),
    "sd": (
        *("conv_in", "down_blocks.1.resnets.0.conv1"),
        *(f"{UNET}.proj_in", f"{UNET}.transformer_blocks.0.attn1.to_q"),
    ),
}


def write(file: Path, layers: dict[str, nn.Module], part: str) -> Path:
    """A LoRA of rank 2 on these layers."""
    torch.manual_seed(5)
    factors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        weight: Any = layer.weight
        factors[f"{part}.{name}{DOWN}"] = 0.3 * torch.randn(2, *weight.shape[1:])
        ones = [1] * (weight.ndim - 2)
        factors[f"{part}.{name}{UP}"] = 0.3 * torch.randn(len(weight), 2, *ones)
    save_file(factors, file)
    return file


def method_of(model: Any, settings: dict[str, Any], lora: Path | None = None) -> Any:
    guidance = {"embedded_guidance": 1.0} if model.pipeline == "FluxPipeline" else {}
    calls = settings["name"] in ("srpo", "prompt_distillation")
    chosen = TypeAdapter(config.MethodConfig).validate_python(
        settings | (guidance if calls else {})
    )
    rollout = config.RolloutConfig(
        **{"num_inference_steps": 3, "height": SIZE, "width": SIZE, **guidance},
        lora=None if lora is None else str(lora),
    )
    return method_class(chosen.name)(model, ToyReward(), chosen, rollout)


def hooks(model: Any) -> int:
    return sum(len(each._forward_hooks) for each in model.denoiser.modules())


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Callable[[str, str], tuple[Callable[[], Any], Path]]:
    return cache(lambda name, tune: written(name, tune, tmp_path_factory.mktemp(name)))


def written(name: str, tune: str, folder: Path) -> tuple[Callable[[], Any], Path]:
    """Loads a model that is no longer its base, and a LoRA of it."""
    model = CASES[name].load(CASES[name].folder(folder / "model"))
    layers = dict(model.denoiser.named_modules())
    file = folder / "few_step.safetensors"
    write(file, {each: layers[each] for each in LAYERS[name]}, model.part)

    def load() -> Any:
        model = CASES[name].load(folder / "model", tune=tune)
        torch.manual_seed(6)
        for parameter in trained(model.denoiser).values():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return model

    return load, file


@pytest.mark.parametrize(
    ("name", "tune", "settings"),
    [
        *(("flux", "full", each) for each in METHODS),
        *(("flux", "lora", each) for each in METHODS if each["name"] in ("srpo", "diffusion_nft")),
        ("sd", "lora", SRPO),
    ],
    ids=lambda given: given["name"] if isinstance(given, dict) else given,
)
def test_rollouts_are_those_with_the_lora_and_all_else_is_without(given, name, tune, settings):
    load, file = given(name, tune)
    model, twin = load(), load()
    method, plain = method_of(model, settings, file), method_of(load(), settings)
    sample, starts, x0, before = method.sample, [], [], hooks(model)
    method.sample = lambda start: starts.append(start) or x0.append(sample(start)) or x0[-1]
    losses = list(method.losses(BATCH))
    assert hooks(model) == before

    twin.denoiser.load_lora_adapter(load_file(file), prefix=twin.part, adapter_name="few_step")
    twin.denoiser.set_adapters([*(["default"] if has_adapters(model.denoiser) else []), "few_step"])
    for start, ours in zip(starts, x0, strict=True):
        torch.testing.assert_close(ours, sample_rollout(twin, start), rtol=0, atol=1e-5)
        assert (ours - sample_rollout(model, start)).abs().max() > 0.01

    found = iter(x0)
    plain.sample = lambda start: next(found)
    for ours, theirs in zip(losses, plain.losses(BATCH), strict=True):
        assert torch.equal(ours.value, theirs.value) and ours.metrics == theirs.metrics


def test_in_the_toy_world_it_makes_the_few_step_model():
    """Whose transformer has this LoRA merged."""
    base, merged = (
        load_model(config.ModelConfig(architecture="flux", path=f"world:{name}"), "cpu")
        for name in ("flux", "flux_turbo")
    )
    noise = torch.randn(2, *base.latent_shape(*base.default_size))
    cond = base.encode_prompt(["a red star on a navy background"] * 2).guided(1.0, 1.0)
    start = RolloutStart(cond, noise, base.sigmas(4, *base.default_size))
    with RolloutLoRA("world:flux_turbo", base).active():
        ours = sample_rollout(base, start)
    torch.testing.assert_close(ours, sample_rollout(merged, start), rtol=0, atol=1e-4)
    assert (ours - sample_rollout(base, start)).abs().max() > 0.1


def test_files_that_do_not_fit_are_refused(given, tmp_path):
    load, _ = given("flux", "lora")
    model = load()
    for name, layer, message in (
        ("blocks.7.to_q", nn.Linear(8, 8), r"adapts blocks\.7\.to_q, which this model lacks"),
        ("x_embedder", nn.Linear(3, 5), r"adapts x_embedder with factors of sizes \(5, 3\)"),
        ("pos_embed", nn.Linear(3, 5), r"adapts pos_embed .* no layer that a LoRA fits"),
    ):
        file = write(tmp_path / "wrong.safetensors", {name: layer}, model.part)
        with pytest.raises(DirectAlignError, match=f"rollout.lora: .*wrong.safetensors: {message}"):
            RolloutLoRA(str(file), model)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for file, message in (
        (
            write(tmp_path / "of_sd.safetensors", {"conv_in": nn.Linear(3, 5)}, "unet"),
            "adapts unet",
        ),
        (tmp_path / "junk.safetensors", "not a complete safetensors file"),
    ):
        with pytest.raises(DirectAlignError, match=rf"rollout\.lora: {file}: {message}"):
            RolloutLoRA(str(file), model)
    with pytest.raises(DirectAlignError, match=r"rollout\.lora: gone: no such file"):
        RolloutLoRA("gone", model)


def recipe(folder: Path, lora: Path | None = None) -> config.RunConfig:
    guidance = {"embedded_guidance": 1.0}
    model = {"architecture": "flux", "path": str(folder / "model"), "lora": {"rank": 2}}
    few = {"lora": str(lora)} if lora else {}
    given = {
        "name": "tiny",
        "model": model,
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": SRPO | guidance,
        "rollout": {"num_inference_steps": 3, "height": SIZE, "width": SIZE, **guidance, **few},
        "data": {"prompts": "world", "batch_size": 2},
        "train": {"num_steps": 2, "save_every": 1, "learning_rate": 1e-2},
        "evaluate": {"num_samples": 2, "references": False},
    }
    return config.RunConfig.model_validate(given)


def test_a_run_measures_and_saves_without_it_and_resumes_exactly(given, tmp_path):
    _, file = given("flux", "lora")
    moved = Path(shutil.copy(file, tmp_path))
    train(recipe(file.parent, file), tmp_path / "a", resume=False)
    train(recipe(file.parent), tmp_path / "plain", resume=False)
    base, other = (records(tmp_path / name, "evaluate")[0] for name in ("a", "plain"))
    assert base == other
    saved = [load_file(tmp_path / name / "lora.safetensors") for name in ("a", "plain")]
    assert saved[0].keys() == saved[1].keys()
    assert any((saved[0][key] != saved[1][key]).any() for key in saved[0])

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints/step-000002")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    train(recipe(file.parent, moved), tmp_path / "b", resume=True)
    ours, whole = (load_file(tmp_path / name / "lora.safetensors") for name in ("b", "a"))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    write(moved, {"x_embedder": nn.Linear(16, 16)}, "transformer")
    shutil.copytree(tmp_path / "plain", tmp_path / "d")
    shutil.rmtree(tmp_path / "d/checkpoints/step-000002")
    for now, out, message in (
        (moved, "c", r".*few_step\.safetensors: the .* with another LoRA: restore it"),
        (None, "c", "the checkpoint's rollouts were sampled with a LoRA: restore it"),
        (file, "d", r".*few_step\.safetensors: the .* without a LoRA: remove it"),
    ):
        with pytest.raises(DirectAlignError, match=f"rollout.lora: {message}, or start a new run"):
            train(recipe(file.parent, now), tmp_path / out, resume=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "python"])
def test_methods_that_train_on_their_own_rollouts_refuse_it(name, tmp_path):
    given = recipe(tmp_path).model_dump()
    phrases = {"control_phrases": {"positive": ["Photo"]}}
    given["method"] = {"name": name, **(phrases if name == "prompt_distillation" else {})}
    given["method"] |= SRPO if name == "srpo" else {}
    given["rollout"] |= {"num_inference_steps": 20}
    if name == "dpo":
        given["data"] = {"pairs": "pairs"}
    config.RunConfig.model_validate(given)
    for key, value in (("lora", "few.safetensors"), ("cache", 0.1)):
        changed = {**given, "rollout": {**given["rollout"], key: value}}
        if name in [each["name"] for each in METHODS]:
            config.RunConfig.model_validate(changed)
            continue
        own = "pairs" if name == "dpo" else "the steps of a rollout of its own weights"
        message = f"rollout.{key}: {value}, and method {name} trains on {own}: remove"
        with pytest.raises(ValueError, match=message):
            config.RunConfig.model_validate(changed)
