"""What the estimate counts, and in which phases; test_cost.py has it against real updates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from preflight_runs import a_run, changed
from pydantic import TypeAdapter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from directalign import config, preflight
from directalign.config import RunConfig
from directalign.methods import METHODS
from directalign.models import MODELS, block_swap, load_model, trainable
from directalign.models.quantization import quantize
from directalign.preflight.activation_memory import MemoryTracker
from directalign.preflight.checks import cut_prompts
from directalign.preflight.fake_tensors import fake
from directalign.preflight.memory import (
    OPTIMIZER_STATE,
    PROMPT,
    UPDATE_8BIT,
    MetaRewards,
    Traced,
    gathered_bytes,
    trace,
)
from directalign.preflight.meta_models import meta_model
from directalign.rewards import REWARDS, load_reward, reward_class
from directalign.rewards.common import BaseReward
from directalign.training.optim import AdamW8bit
from directalign.types import DirectAlignError
from low_rank_updates import updates_of_shape, write_lora
from recorded_rewards import write_aesthetic, write_image_reward
from tiny_rewards import VLMS, write_altclip, write_open_clip, write_vlm

CPU, GPU = preflight.Place("the CPU", 10**12, is_gpu=False), preflight.a_gpu(24, ranks=1)
FIXTURES = Path(__file__).parents[1] / "fixtures"
HPSV3, PLUS_PLUS = FIXTURES / "hpsv3", FIXTURES / "hpsv3_plus_plus"
LONG = "a red star over a sandy shore " * 200
HEADS = ("linear", "improved", "v2_5")
HPS = ("hpsv3", "hpsv3++")


@pytest.fixture(scope="module")
def sections(tmp_path_factory, clip_folder, siglip_folder):
    """A tiny reward of each kind, as a recipe names it."""
    folder = tmp_path_factory.mktemp("rewards")
    paths: dict[str, tuple[str, Any, Any]] = {
        "clip": ("clip", clip_folder, None),
        "open_clip": ("clip", write_open_clip(folder, clip_folder), clip_folder),
        "altclip": ("altclip", write_altclip(folder / "altclip"), None),
        "siglip": ("siglip", siglip_folder, None),
        "latent_clip": ("latent_clip", "world:reward_latent", None),
        "image_reward": ("image_reward", *write_image_reward(folder)),
        "mps": ("mps", FIXTURES / "mps" / "mps.safetensors", FIXTURES / "mps"),
        "hpsv3": ("hpsv3", HPSV3 / "HPSv3.safetensors", HPSV3 / "processor"),
        "hpsv3++": ("hpsv3", PLUS_PLUS / "hpsv3++.pth", PLUS_PLUS / "processor"),
        **{kind: ("vlm", write_vlm(folder / kind, kind), None) for kind in VLMS},
    }
    found: dict[str, dict[str, Any]] = {
        "pixels": {"name": "pixels", "statistic": "redness"},
        "preservation": {"name": "preservation"},
    }
    for label, (name, path, processor) in paths.items():
        found[label] = {"name": name, "path": str(path)}
        if processor is not None:
            found[label]["processor"] = str(processor)
        if name == "vlm":
            found[label]["dtype"] = "float32"
    for name in HEADS:
        head, backbone = write_aesthetic(folder, name)
        found[name] = {"name": "aesthetic", "path": str(head), "backbone": str(backbone)}
    return found


@pytest.mark.parametrize("name", [name for name in METHODS if name != "python"])
def test_every_method_can_be_traced_and_says_nothing(models, name, caplog):
    method = {"name": name, "form": "absolute", "control_phrases": {"positive": ["Photo"]}}
    if name in ("flow_grpo", "diffusion_nft", "awm"):
        method["group_size"] = 2  # every sample of a group is traced
    data = {"prompts": None, "pairs": "pairs.jsonl"} if name == "dpo" else {}
    model, rollout = {"tune": "full"}, {"num_inference_steps": 4}
    run = changed(a_run("sd", models["sd"], **model), method=method, rollout=rollout, data=data)
    traced = trace(run, found := meta_model(run.model), MetaRewards(run))
    assert traced.warnings == () and traced.peaks["train"] > 0 and traced.peaks["rollout"] > 0
    copies = {"diffusion_nft": 1, "awm": 1, "dpo": 1, "prompt_distillation": 1}.get(name, 0)
    assert traced.held_by_method == copies * sum(each.nbytes for each in found.trained.values())
    assert caplog.messages == []


@pytest.mark.parametrize("name", MODELS)
def test_prompts_that_an_encoder_cuts_are_counted(models, name):
    run = a_run(name, models[name])
    found = cut_prompts(run, CPU, ["a star", LONG + "and a ring", LONG], online=False)
    assert found and all("2 of 3 prompts are longer than its" in each for each in found)
    assert cut_prompts(run, CPU, ["a star"], online=False) == []


def test_every_reward_is_tested_here(sections):
    none = vars(BaseReward)["meta"].__func__
    traced = {name for name in REWARDS if reward_class(name).meta.__func__ is not none}
    assert traced == {each["name"] for each in sections.values()}
    assert set(REWARDS) - traced == {"ocr", "python", "remote", "vlm_api", "mix"}


def score_peak(reward: Any) -> int:
    """Peak bytes of scoring two images or their latents, with the backward pass."""
    images = torch.rand(2, *getattr(reward, "shape", (3, 64, 64)))
    if isinstance(next(iter(networks(reward)[0].parameters())).data, FakeTensor):
        images = fake(images.shape, images.dtype)
    with MemoryTracker() as tracker:
        reward.score(reward.encode(images.requires_grad_()), [PROMPT, PROMPT]).sum().backward()
    return tracker.peaks[""]


def networks(reward: Any) -> list[nn.Module]:
    return [each for each in vars(reward).values() if isinstance(each, nn.Module)]


@pytest.mark.parametrize(
    "label",
    [
        *("clip", "open_clip", "altclip", "siglip", "latent_clip", "image_reward"),
        *(*HEADS, "mps", *VLMS, *HPS),
    ],
)
def test_every_reward_takes_what_the_real_one_does(models, sections, label):
    settings = sections[label]
    run = changed(a_run("sd", models["sd"]), reward=settings, method={"form": "absolute"})
    rewards = MetaRewards(run)
    weights = sum(row.sizes["train"] for row in rewards.rows(preflight.PHASES))
    if label == "mps":  # its processor is not among the fixtures
        assert weights > 0
        return
    reward: Any = load_reward(TypeAdapter(config.SingleRewardConfig).validate_python(settings))
    parameters = [each for network in networks(reward) for each in network.parameters()]
    assert weights == sum(parameter.nbytes for parameter in parameters)
    if label not in (*VLMS, *HPS):  # their chats are shorter with the real tokenizers
        assert score_peak(rewards.trained_on) == pytest.approx(score_peak(reward), rel=0.1)


def test_a_mixture_and_held_out_rewards_have_their_rows(models, sections):
    members = [{"label": name, "reward": sections[name]} for name in ("clip", "pixels")]
    remote = {"name": "remote", "url": "http://localhost:1/"}
    run = changed(
        a_run("sd", models["sd"]),
        reward={"name": "mix", "members": members},
        evaluate={"rewards": {"other": sections["siglip"], "far": remote}},
    )
    found = preflight.estimate(run, CPU)
    rows = {row.part: row for row in found.rows}
    assert {"reward clip", "held out other"} <= rows.keys() and "reward pixels" not in rows
    assert rows["held out far"].note.startswith("not estimated: ") and found.warnings == ()
    assert found.at("train", ("traced",)) > 0


# Classes that preflight does not know

OWN_REWARD = """
class Redness:
    def encode(self, images):
        return images

    def score(self, features, prompts):
        return features[:, 0].mean((1, 2))
"""
OWN_MODEL = """
from directalign.models.sd import StableDiffusion

class Mine(StableDiffusion):
    def __init__(self, source, settings, device, seed):
        raise NotImplementedError("needs its weights")
"""


def test_classes_of_the_user_are_not_estimated_and_the_run_may_start(models, tmp_path):
    (tmp_path / "reward.py").write_text(OWN_REWARD)
    (tmp_path / "model.py").write_text(OWN_MODEL)
    path = f"{tmp_path}/reward.py:Redness"
    reward = {"name": "python", "path": path, "differentiable": True}
    found = preflight.plan(changed(a_run("sd", models["sd"]), reward=reward), tmp_path / "out")
    rows = {row.part: row for row in found.memory.rows}
    assert rows["reward"].note.startswith("not estimated: python") and rows["reward"].sizes == {}
    assert found.memory.at("train", ("traced",)) > 0
    assert any(each.startswith("reward: memory not estimated: python") for each in found.warnings)
    found = preflight.plan(a_run(f"{tmp_path}/model.py:Mine", models["sd"]), tmp_path / "out")
    expected = "model: memory not estimated: NotImplementedError: needs its weights"
    assert found.memory.fits and expected in found.warnings


def test_a_reward_that_fails_on_fake_tensors_is_not_estimated(models, monkeypatch):
    monkeypatch.setattr(reward_class("pixels"), "encode", lambda *_: 1 / 0)
    found = preflight.estimate(a_run("sd", models["sd"]), CPU)
    (warning,) = found.warnings
    assert warning.startswith("reward: activations not estimated: ZeroDivisionError")
    assert found.at("train", ("traced",)) > 0


REFUSED = {
    "clip /nowhere/weights.pt": r"reward\.path: /nowhere/weights\.pt: no such file",
    "clip SIGLIP": "holds a siglip model, and this reward needs a transformers clip",
    "siglip yuvalkirstain/PickScore_v1": "is a model of clip, and this reward needs one of siglip",
}


def test_a_missing_file_or_another_architecture_is_refused(models, siglip_folder):
    for reward, message in REFUSED.items():
        name, path = reward.replace("SIGLIP", str(siglip_folder)).split()
        run = changed(a_run("sd", models["sd"]), reward={"name": name, "path": path})
        with pytest.raises(DirectAlignError, match=message):
            MetaRewards(run)


# Weights and optimizer


@pytest.fixture
def untraced(monkeypatch):
    monkeypatch.setattr("directalign.preflight.memory.trace", lambda *_: Traced())


def sizes(run: RunConfig, place: preflight.Place = CPU) -> dict[str, int]:
    rows = preflight.estimate(run, place).rows
    counted = (row for row in rows if row.kind == "counted")
    return {row.part: max(row.sizes.values(), default=0) for row in counted}


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_trained_number_takes_16_bytes_and_20_with_an_average(models, tune):
    run = a_run("sd", models["sd"], tune=tune, lora={"rank": 3})
    count = sum(p.numel() for p in trainable(load_model(run.model, "cpu")).values())
    found, name = sizes(run), "unet, trained" if tune == "full" else "adapters, trained"
    assert preflight.estimate(run, CPU).trained == count
    assert [found[part] // count for part in (name, "gradients", "moments")] == [4, 4, 8]
    assert sizes(changed(run, train={"ema_decay": 0.99}))["average of weights"] == 4 * count
    assert sizes(run, GPU)["roots of moments"] == 4 * count


def test_only_full_training_copies_the_weights_for_a_kl_to_the_base_model(models):
    for tune in ("full", "lora"):
        found = sizes(changed(a_run("sd", models["sd"], tune=tune), method={"kl_beta": 1.0}))
        copied = found["unet, trained"] if tune == "full" else 0
        assert found.get("frozen copy of weights", 0) == copied


@pytest.mark.usefixtures("untraced")
def test_text_encoders_count_in_the_phases_that_need_them(models):
    def phases(mode: str, part: str) -> set[str]:
        rows = preflight.estimate(a_run("flux", models["flux"], text_encoders=mode), CPU).rows
        return set(next(row.sizes for row in rows if row.part == part))

    assert phases("keep", "text_encoder_2") == set(preflight.PHASES)
    assert phases("offload", "text_encoder_2") == phases("free", "text_encoder_2") == {"encode"}
    assert "encode" in phases("offload", "moments") and "encode" not in phases("free", "moments")


def test_rollouts_are_traced_without_their_lora_and_cache_and_the_lora_is_counted(models, tmp_path):
    file = write_lora(tmp_path, updates_of_shape({"x_embedder": (16, 16)}))
    plain = a_run("flux", models["flux"])
    run = changed(plain, rollout={"lora": str(tmp_path), "cache": 0.1})
    without, found = (preflight.estimate(each, CPU) for each in (plain, run))
    added = [row for row in found.rows if row.part == "rollout.lora"]
    assert [row for row in found.rows if row not in added] == list(without.rows)
    assert set(added[0].sizes.values()) == {file.stat().st_size} and found.warnings == ()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("bits", [None, "8bit"])
def test_a_frozen_base_is_counted_as_stored(models, monkeypatch, bits):
    monkeypatch.setattr("directalign.models.quantization.SMALLEST", 64)
    run = a_run("flux", models["flux"], dtype="bfloat16", quantization=bits)
    network: Any = load_model(run.model.model_copy(update={"quantization": None}), "cpu").denoiser
    network.unload_lora() if hasattr(network, "unload_lora") else network.delete_adapters("default")
    if bits is not None:
        quantize(network, bits, torch.device("cpu"))
    stored = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert sizes(run)["transformer"] == pytest.approx(stored, rel=0.02)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("bits", [None, "8bit"])
def test_swapped_blocks_are_in_main_memory_but_for_two(models, monkeypatch, bits):
    monkeypatch.setattr("directalign.models.quantization.SMALLEST", 64)
    run = a_run("flux", models["flux"], quantization=bits, gradient_checkpointing=True)
    network = load_model(run.model, "cpu").denoiser
    blocks = [
        sum(weight.nbytes for _, _, weight in block_swap.frozen_weights(block))
        for block in block_swap.blocks_of(network)
    ]
    before, after = sizes(run), sizes(changed(run, model={"block_swap": len(blocks)}))
    assert before["transformer"] - after["transformer"] == sum(blocks)
    assert after["two swapped blocks"] == 2 * max(blocks)
    few = sizes(changed(run, model={"block_swap": 1}))
    assert before["transformer"] - few["transformer"] == blocks[0]
    with pytest.raises(DirectAlignError, match=r"model.block_swap: 99, and this model has"):
        sizes(changed(run, model={"block_swap": 99}))


def test_four_bits_of_flux_take_a_quarter_of_16():
    flux = {"path": "black-forest-labs/FLUX.1-dev", "dtype": "bfloat16", "quantization": "4bit"}
    narrow = meta_model(config.ModelConfig(architecture="flux", **flux)).frozen_bytes
    assert 0.25 < narrow / (2 * 11_901_408_320) < 0.28


def test_eight_bit_moments_are_what_the_optimizer_allocates():
    weight = nn.Parameter(torch.randn(512, 1024, dtype=torch.bfloat16))
    weight.grad = torch.randn_like(weight)
    optimizer = AdamW8bit([weight], lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    optimizer.step()
    state = sum(tensor.nbytes for tensor in optimizer.state[weight].values()) / weight.numel()
    assert state == pytest.approx(OPTIMIZER_STATE["adamw8bit"], rel=1e-3)
    with MemoryTracker() as tracker:
        optimizer.step()
    assert tracker.peaks[""] / weight.numel() == pytest.approx(UPDATE_8BIT, rel=0.1)


@pytest.mark.usefixtures("untraced")
def test_ranks_split_what_is_trained_and_gather_two_blocks(models):
    run = a_run("flux", models["flux"], tune="full")
    four_ranks = preflight.Place("the CPU", 10**12, False, ranks=4)
    one, four = sizes(run), sizes(run, four_ranks)
    for part in ("transformer, trained", "gradients", "moments"):
        assert four[part] == one[part] // 4
    assert "gathered blocks" not in one
    assert four["gathered blocks, training"] > four["gathered blocks"]
    assert sizes(changed(run, train={"parallel": "data"}), four_ranks) == one
    nodes, hybrid = replace(four_ranks, per_node=2), changed(run, train={"parallel": "hybrid"})
    assert sizes(hybrid, nodes)["moments"] == one["moments"] // 2
    network = {"in.weight": (10, 2), "blocks.0.a": (30,), "blocks.0.b": (5,), "blocks.1.a": (30,)}
    assert gathered_bytes(network, 2, False) == 2 * (20 + 2 * 35)
    assert gathered_bytes(network, 2, True) == 2 * (20 + 2 * 35) + 35 * (2 + 4)
