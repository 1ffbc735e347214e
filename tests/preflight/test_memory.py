"""The estimate against real runs on tiny models, and what is counted in which phases."""

# ruff: noqa: F811
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from preflight_runs import a_run, changed
from pydantic import TypeAdapter
from torch import nn

from directalign import config, preflight
from directalign.config import LoRAConfig, RunConfig
from directalign.models import MODELS, load_model, trainable
from directalign.models.quantization import quantize
from directalign.methods import METHODS, load_method
from directalign.preflight.activation_memory import MemoryTracker
from directalign.preflight.memory import (
    OPTIMIZER_STATE,
    PROMPT,
    UPDATE_8BIT,
    MetaRewards,
    gathered_bytes,
    trace,
)
from directalign.preflight.meta_models import meta_model
from directalign.rewards import REWARDS, load_reward, reward_class
from directalign.training.adamw8bit import AdamW8bit
from directalign.types import Batch, DirectAlignError
from recorded_rewards import write_aesthetic, write_image_reward
from tiny import tiny_flux, tiny_sd  # noqa: F401 (fixtures)
from tiny_clip import clip_folder  # noqa: F401 (fixture)
from tiny_klein import write_klein
from tiny_open_clip import write_open_clip
from tiny_qwen import write_qwen_image
from tiny_sd3 import write_sd3
from tiny_sdxl import write_sdxl
from tiny_siglip import siglip_folder  # noqa: F401 (fixture)
from tiny_vlm import MODELS as VLMS
from tiny_vlm import write_vlm
from tiny_z_image import write_z_image

CPU, GPU = preflight.Place("the CPU", 10**12, is_gpu=False), preflight.a_gpu(24, ranks=1)
FIXTURES = Path(__file__).parents[1] / "fixtures"
LONG = "a red star over a sandy shore " * 200
WRITERS: dict[str, Any] = {
    "flux2_klein": write_klein,
    "sd3": write_sd3,
    "sdxl": write_sdxl,
    "qwen_image": write_qwen_image,
    "z_image": write_z_image,
}


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tiny_flux: Path, tiny_sd: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"flux": tiny_flux, "sd": tiny_sd} | {
        name: write(folder / name) for name, write in WRITERS.items()
    }


@pytest.fixture(scope="module")
def kinds(
    tmp_path_factory: pytest.TempPathFactory, clip_folder: Path, siglip_folder: Path
) -> dict[str, dict[str, Any]]:
    """A tiny reward of each kind, as a recipe names it."""
    folder = tmp_path_factory.mktemp("kinds")
    weights, reader = write_image_reward(folder)
    heads = {name: write_aesthetic(folder, name) for name in ("linear", "improved", "v2_5")}
    hpsv3 = {
        "name": "hpsv3",
        "path": str(FIXTURES / "hpsv3" / "HPSv3.safetensors"),
        "processor": str(FIXTURES / "hpsv3" / "processor"),
    }
    return {
        "clip": {"name": "clip", "path": str(clip_folder)},
        "open_clip": {
            "name": "clip",
            "path": str(write_open_clip(folder, clip_folder)),
            "processor": str(clip_folder),
        },
        "siglip": {"name": "siglip", "path": str(siglip_folder)},
        "image_reward": {"name": "image_reward", "path": str(weights), "processor": str(reader)},
        **{
            name: {"name": "aesthetic", "path": str(head), "backbone": str(backbone)}
            for name, (head, backbone) in heads.items()
        },
        "mps": {
            "name": "mps",
            "path": str(FIXTURES / "mps" / "mps.safetensors"),
            "processor": str(FIXTURES / "mps"),
        },
        **{
            kind: {"name": "vlm", "path": str(write_vlm(folder / kind, kind)), "dtype": "float32"}
            for kind in VLMS
        },
        "hpsv3": hpsv3,
        "pixels": {"name": "pixels", "statistic": "redness"},
    }


def real_update(run: RunConfig) -> tuple[int, int]:
    """Bytes at most in a training step of the real model, reward and method, and in sampling before it."""
    model = load_model(run.model, "cpu")
    for parameter in trainable(model).values():
        parameter.grad = torch.zeros_like(parameter)
    method = load_method(run, model, load_reward(run.reward))
    with MemoryTracker() as tracker:
        tracker.phase = "encode"
        cond = model.encode_prompt([LONG] * run.data.batch_size)
        model.encode_prompt = lambda prompts: cond  # type: ignore[method-assign]

        def training(*_: Any) -> None:
            tracker.phase = "train" if torch.is_grad_enabled() else tracker.phase

        model.denoiser.register_forward_pre_hook(training)
        tracker.phase = "rollout"
        for loss in method.losses(Batch(0, (PROMPT,) * run.data.batch_size)):
            tracker.phase = "train"
            loss.value.backward()
            del loss
    return tracker.peaks["train"], tracker.peaks["rollout"]


def foretold(run: RunConfig) -> tuple[int, int]:
    peaks = trace(run, meta_model(run.model), MetaRewards(run)).peaks
    return peaks["train"], peaks["rollout"]


@pytest.mark.parametrize("name", MODELS)
def test_an_update_of_every_model_takes_what_is_foretold(
    models: dict[str, Path], name: str
) -> None:
    for model in ({"gradient_checkpointing": True}, {"tune": "full"}):
        run = a_run(name, models[name], **model)
        run = changed(run, rollout={"num_inference_steps": 4, "height": 64, "width": 64})
        assert foretold(run) == pytest.approx(real_update(run), rel=0.1), model


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_traced(models: dict[str, Path], name: str) -> None:
    given = a_run("sd", models["sd"]).model_dump()
    run = RunConfig.model_validate(
        given
        | {
            "method": {
                "name": name,
                "form": "absolute",
                **({"sde": "ddim"} if name == "flow_grpo" else {}),
            }
        }
    )
    found = preflight.estimate(run, CPU)
    assert (
        found.warnings == ()
        and found.at("train", ("traced",)) > 0
        and found.at("rollout", ("traced",)) > 0
    )


def test_every_reward_is_among_the_tiny_ones(kinds: dict[str, dict[str, Any]]) -> None:
    traced = {name for name in REWARDS if "meta" in vars(reward_class(name))}
    assert traced == {each["name"] for each in kinds.values()}
    assert set(REWARDS) - traced == {"python", "remote", "mix"}, (
        "what cannot be traced is said to be not estimated"
    )


SETTINGS = [
    "clip",
    "open_clip",
    "siglip",
    "image_reward",
    "linear",
    "improved",
    "v2_5",
    "mps",
    *VLMS,
    "hpsv3",
    "pixels",
]


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_reward_holds_and_takes_what_the_real_one_does(
    models: dict[str, Path], kinds: dict[str, dict[str, Any]], kind: str
) -> None:
    settings = kinds[kind]
    reads = kind not in ("linear", "improved", "v2_5", "pixels")
    words = {"positive": ["Real"], "negative": ["Flat"]}
    run = a_run("sd", models["sd"]).model_dump()
    run = RunConfig.model_validate(
        run
        | {
            "reward": settings,
            "method": {"form": "relative", "control_phrases": words}
            if reads
            else {"form": "absolute"},
        }
    )
    run = changed(run, rollout={"num_inference_steps": 2})
    if kind == "mps":  # its processor is not among the fixtures
        assert sum(row.sizes["train"] for row in MetaRewards(run).rows(preflight.PHASES)) > 0
        return
    reward: Any = load_reward(TypeAdapter(config.SingleRewardConfig).validate_python(settings))
    modules = [each for each in vars(reward).values() if isinstance(each, nn.Module)]
    held = sum(
        parameter.numel() * parameter.itemsize
        for module in modules
        for parameter in module.parameters()
    )
    rows = MetaRewards(run).rows(preflight.PHASES)
    assert sum(row.sizes["train"] for row in rows) == held
    if kind not in (*VLMS, "hpsv3"):  # whose chats are shorter with their real tokenizers
        assert foretold(run)[0] == pytest.approx(real_update(run)[0], rel=0.1)


def test_a_mixture_and_held_out_rewards_have_their_rows(
    models: dict[str, Path], kinds: dict[str, dict[str, Any]]
) -> None:
    members = [{"label": name, "reward": kinds[name]} for name in ("clip", "pixels", "qwen2_5_vl")]
    given = a_run("sd", models["sd"]).model_dump() | {"reward": {"name": "mix", "members": members}}
    given["evaluate"] |= {
        "rewards": {
            "other": kinds["siglip"],
            "far": {"name": "remote", "url": "http://localhost:1/"},
        }
    }
    found = preflight.estimate(RunConfig.model_validate(given), CPU)
    rows = {row.part: row for row in found.rows}
    assert {
        "reward clip",
        "reward qwen2_5_vl",
        "held out other",
    } <= rows.keys() and "reward pixels" not in rows
    assert rows["held out far"].note.startswith("not estimated: ") and found.warnings == ()
    assert found.at("train", ("traced",)) > 0


def test_what_cannot_be_traced_is_said_and_lets_the_run_start(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = a_run("sd", models["sd"]).model_dump()
    own = RunConfig.model_validate(
        given | {"reward": {"name": "python", "path": "judge.py:score", "differentiable": True}}
    )
    assert (
        preflight.estimate(own, CPU).warnings[0].startswith("reward: memory not estimated: python")
    )

    def broken(*_: Any) -> Any:
        raise NotImplementedError("no such operation on fake tensors")

    monkeypatch.setattr("directalign.rewards.pixel_statistics.PixelReward.encode", broken)
    found = preflight.estimate(a_run("sd", models["sd"]), CPU)
    (warning,) = found.warnings
    assert (
        warning.startswith("reward: activations not estimated: NotImplementedError")
        and found.at("train", ("traced",)) > 0
    )


def test_a_file_or_a_model_of_another_kind_is_an_error(
    models: dict[str, Path], siglip_folder: Path
) -> None:
    for reward, said in (
        (
            {"name": "clip", "path": "/nowhere/weights.pt"},
            r"reward\.path: /nowhere/weights\.pt: no such file",
        ),
        (
            {"name": "clip", "path": str(siglip_folder)},
            "holds a siglip model, and this reward needs a transformers clip",
        ),
        (
            {"name": "siglip", "path": "yuvalkirstain/PickScore_v1"},
            "is a model of clip, and this reward needs one of siglip",
        ),
    ):
        with pytest.raises(DirectAlignError, match=said):
            MetaRewards(
                RunConfig.model_validate(
                    a_run("sd", models["sd"]).model_dump() | {"reward": reward}
                )
            )


# --- weights and optimizer ----------------------------------------------------------------------------


def sizes(run: RunConfig, place: preflight.Place = CPU) -> dict[str, int]:
    return {
        row.part: max(row.sizes.values(), default=0)
        for row in preflight.estimate(run, place).rows
        if row.kind == "counted"
    }


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_each_trained_number_costs_16_bytes_and_20_with_an_average(
    models: dict[str, Path], tune: str
) -> None:
    run = a_run("sd", models["sd"], tune=tune, lora=LoRAConfig(rank=3).model_dump())
    model = load_model(run.model, "cpu")
    trained = sum(parameter.numel() for parameter in trainable(model).values())
    found, name = sizes(run), "unet, trained" if tune == "full" else "adapters, trained"
    assert preflight.estimate(run, CPU).trained == trained
    assert (found[name], found["gradients"], found["moments"]) == (
        4 * trained,
        4 * trained,
        8 * trained,
    )
    assert sizes(changed(run, train={"ema_decay": 0.99}))["average of weights"] == 4 * trained
    assert sizes(run, GPU)["roots of moments"] == 4 * trained


def test_only_weights_that_are_all_trained_are_copied_for_a_divergence_from_the_base(
    models: dict[str, Path],
) -> None:
    for tune, copied in (("full", True), ("lora", False)):
        run = changed(a_run("sd", models["sd"], tune=tune), method={"kl_beta": 1.0})
        found = sizes(run)
        assert found.get("frozen copy of weights", 0) == (found["unet, trained"] if copied else 0)


def test_text_encoders_are_there_in_the_phases_that_they_are_needed_in(
    models: dict[str, Path],
) -> None:
    def phases(mode: str, part: str) -> set[str]:
        rows = preflight.estimate(a_run("flux", models["flux"], text_encoders=mode), CPU).rows
        return set(next(row.sizes for row in rows if row.part == part))

    assert phases("keep", "text_encoder_2") == set(preflight.PHASES)
    assert phases("offload", "text_encoder_2") == phases("free", "text_encoder_2") == {"encode"}
    assert "encode" in phases("offload", "moments") and "encode" not in phases("free", "moments")


@pytest.mark.parametrize("bits", [None, "8bit"])
def test_a_frozen_base_is_counted_as_it_is_held(models: dict[str, Path], bits: str | None) -> None:
    run = a_run("flux", models["flux"], dtype="bfloat16", quantization=bits)
    network: Any = load_model(run.model.model_copy(update={"quantization": None}), "cpu").denoiser
    network.unload_lora() if hasattr(network, "unload_lora") else network.delete_adapters("default")
    if bits is not None:
        quantize(network, bits, torch.device("cpu"))
    held = sum(
        tensor.numel() * tensor.itemsize for tensor in (*network.parameters(), *network.buffers())
    )
    assert sizes(run)["transformer"] == pytest.approx(held, rel=0.02)


def test_four_bits_of_flux_take_a_quarter_of_16() -> None:
    flux = {"architecture": "flux", "path": "black-forest-labs/FLUX.1-dev", "dtype": "bfloat16"}
    wide, narrow = (
        meta_model(config.ModelConfig(**flux, quantization=bits)) for bits in (None, "4bit")
    )
    assert (
        wide.frozen_bytes == 2 * 11_901_408_320
        and 0.25 < narrow.frozen_bytes / wide.frozen_bytes < 0.28
    )


def test_eight_bit_moments_are_what_the_optimizer_holds_and_its_step_what_it_makes() -> None:
    weight = nn.Parameter(torch.randn(512, 1024, dtype=torch.bfloat16))
    weight.grad = torch.randn_like(weight)
    optimizer = AdamW8bit([weight], lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    optimizer.step()
    state = list(optimizer.state[weight].values())
    held = sum(tensor.numel() * tensor.element_size() for tensor in state) / weight.numel()
    assert held == pytest.approx(OPTIMIZER_STATE["adamw8bit"], rel=1e-3)
    with MemoryTracker() as tracker:
        optimizer.step()
    assert tracker.peaks[""] / weight.numel() == pytest.approx(UPDATE_8BIT, rel=0.1)


def test_ranks_split_what_is_trained_and_gather_two_blocks(models: dict[str, Path]) -> None:
    run, four_ranks = (
        a_run("flux", models["flux"], tune="full"),
        preflight.Place("the CPU", 10**12, False, ranks=4),
    )
    one, four = sizes(run), sizes(run, four_ranks)
    for part in ("transformer, trained", "gradients", "moments"):
        assert four[part] == one[part] // 4
    assert (
        "gathered blocks" not in one and four["gathered blocks, training"] > four["gathered blocks"]
    )
    assert sizes(changed(run, train={"parallel": "data"}), four_ranks) == one
    network = {"in.weight": (10, 2), "blocks.0.a": (30,), "blocks.0.b": (5,), "blocks.1.a": (30,)}
    assert gathered_bytes(network, 2, False) == 2 * (20 + 2 * 35)
    assert gathered_bytes(network, 2, True) == 2 * (20 + 2 * 35) + 35 * (2 + 4)
