"""What is held, counted exactly, and in which phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from memory_runs import a_run, changed
from peft import LoraConfig
from torch import nn

from directalign import memory
from directalign.config import LoRAConfig, RunConfig
from directalign.memory.adapters import base_bytes, gathered_bytes
from directalign.memory.architecture import model_architecture
from directalign.memory.held import MOMENTS, UNPACKED
from directalign.memory.live import LiveStorages
from directalign.memory.weightless import shapes
from directalign.models.quantization import quantize
from directalign.training.adamw8bit import AdamW8bit
from tiny import tiny_flux, tiny_sd  # noqa: F401 (fixtures)

CPU = memory.Place("the CPU", 10**12, is_gpu=False)
GPU = memory.a_gpu(24, ranks=1)


def sizes(run: RunConfig, place: memory.Place = CPU) -> dict[str, int]:
    return {row.part: max(row.sizes.values()) for row in memory.estimate(run, place).rows if row.kind != "allowance"}


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs a trace."""
    monkeypatch.setattr("directalign.memory.phases.passing", lambda subject: dict.fromkeys(memory.PHASES, 0))
    monkeypatch.setattr("directalign.memory.phases.says", lambda subject: "")


def test_what_is_trained_is_counted_exactly(tiny_flux: Path) -> None:  # noqa: F811
    network = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    everything = sum(parameter.numel() for parameter in network.parameters())
    full = memory.estimate(a_run("flux", tiny_flux, tune="full"), CPU)
    assert full.trained == everything
    targets = ["attn.to_q", "ff.net.2", "proj_mlp"]
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=3, target_modules=targets))
    adapters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    run = a_run("flux", tiny_flux, lora=LoRAConfig(rank=3, targets=targets).model_dump())
    assert memory.estimate(run, CPU).trained == adapters


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_each_trained_number_costs_16_bytes_and_20_with_an_average(tiny_sd: Path, tune: str) -> None:  # noqa: F811
    run = a_run("sd", tiny_sd, tune=tune)
    found, trained = sizes(run), memory.estimate(run, CPU).trained
    name = "unet, trained" if tune == "full" else "adapters, trained"
    assert (found[name], found["gradients"], found["moments"]) == (4 * trained, 4 * trained, 8 * trained)
    assert sizes(changed(run, train={"ema_decay": 0.99}))["average of weights"] == 4 * trained
    assert sizes(run, GPU)["roots of moments"] == 4 * trained


def test_bfloat16_halves_what_is_frozen(tiny_flux: Path) -> None:  # noqa: F811
    single, half = sizes(a_run("flux", tiny_flux)), sizes(a_run("flux", tiny_flux, dtype="bfloat16"))
    assert all(2 * half[part] == single[part] for part in ("text_encoder", "text_encoder_2", "vae", "transformer"))
    assert half["adapters, trained"] == single["adapters, trained"]


def test_text_encoders_are_there_in_the_phases_that_they_are_needed_in(tiny_flux: Path) -> None:  # noqa: F811
    def phases(mode: str, part: str) -> set[str]:
        rows = memory.estimate(a_run("flux", tiny_flux, text_encoders=mode), CPU).rows
        return set(next(row.sizes for row in rows if row.part == part))

    assert phases("keep", "text_encoder_2") == set(memory.PHASES)
    assert phases("offload", "text_encoder_2") == phases("free", "text_encoder_2") == {"encode"}
    assert "encode" in phases("offload", "moments") and "encode" not in phases("free", "moments")


def test_eight_bits_of_a_base_are_counted_as_they_are_held() -> None:
    network: Any = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    network.to(torch.bfloat16)
    plain = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    quantize(network, "8bit", torch.device("cpu"))
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    model = a_run("flux", Path(), dtype="bfloat16", quantization="8bit").model
    assert base_bytes(plain, model) == held


def test_four_bits_of_flux_take_a_quarter_of_16() -> None:
    run = a_run("flux", Path("black-forest-labs/FLUX.1-dev"), dtype="bfloat16", quantization="4bit")
    wide, narrow = (
        base_bytes(shapes(model_architecture(run.model).parts["transformer"]), m) for m in (run.model.model_copy(update={"quantization": None}), run.model)
    )
    assert wide == 2 * 11_901_408_320 and 0.25 < narrow / wide < 0.28


def test_eight_bit_moments_are_what_the_optimiser_holds_and_its_step_what_it_makes() -> None:
    weight = nn.Parameter(torch.randn(512, 1024, dtype=torch.bfloat16))
    weight.grad = torch.randn_like(weight)
    optimizer = AdamW8bit([weight], lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    optimizer.step()
    state = list(optimizer.state[weight].values())
    assert sum(tensor.numel() * tensor.element_size() for tensor in state) / weight.numel() == pytest.approx(MOMENTS["adamw8bit"], rel=1e-3)
    with LiveStorages([weight, weight.grad, *state]) as live:
        optimizer.step()
    assert live.peak / weight.numel() == pytest.approx(UNPACKED, rel=0.02)


def test_adamw_on_a_gpu_makes_one_more_number_for_each() -> None:
    weights = [nn.Parameter(torch.randn(100, 100)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights, foreach=True)  # as on a GPU
    optimizer.step()
    with LiveStorages() as live:
        optimizer.step()
    assert live.peak == pytest.approx(4 * 30_000, rel=0.01)


def test_ranks_split_what_is_trained_and_gather_two_blocks(tiny_flux: Path) -> None:  # noqa: F811
    run = a_run("flux", tiny_flux, tune="full")
    one, four = sizes(run), sizes(run, memory.Place("the CPU", 10**12, False, ranks=4))
    for part in ("transformer, trained", "gradients", "moments"):
        assert four[part] == one[part] // 4
    assert "gathered blocks" not in one and four["gathered blocks, training"] > four["gathered blocks"]
    data = sizes(changed(run, train={"parallel": "data"}), memory.Place("the CPU", 10**12, False, ranks=4))
    assert data == one
    network = {"in.weight": (10, 2), "blocks.0.a": (30,), "blocks.0.b": (5,), "blocks.1.a": (30,)}
    assert gathered_bytes(network, 2, False) == 2 * (20 + 2 * 35)
    assert gathered_bytes(network, 2, True) == 2 * (20 + 2 * 35) + 35 * (2 + 4)


@pytest.mark.parametrize(
    ("method", "calls"),
    [({"name": "draft", "grad_steps": 3}, 3), ({"name": "leapalign"}, 2), ({"name": "alignprop"}, 1), ({"name": "flow_grpo"}, 1), ({"name": "flowbp"}, 3)],
)
def test_a_method_keeps_as_many_calls_as_it_differentiates_at_once(tiny_sd: Path, method: dict[str, Any], calls: int) -> None:  # noqa: F811
    run = RunConfig.model_validate({**a_run("sd", tiny_sd).model_dump(), "method": method})
    assert memory.kept_calls(run) == calls
    assert memory.kept_calls(changed(run, rollout={"cfg_scale": 4.0})) == 2 * calls


def test_a_divergence_from_the_base_needs_a_second_copy_of_weights_that_are_trained_whole(tiny_sd: Path) -> None:  # noqa: F811
    def copies(**model: str) -> int | None:
        run = RunConfig.model_validate({**a_run("sd", tiny_sd, **model).model_dump(), "method": {"name": "flow_grpo", "kl_weight": 0.1}})
        return sizes(run).get("frozen copy of weights")

    assert copies(tune="full") == 4 * memory.estimate(a_run("sd", tiny_sd, tune="full"), CPU).trained
    assert copies(tune="lora") is None


def test_a_gpu_takes_more_than_its_tensors(tiny_sd: Path) -> None:  # noqa: F811
    found = memory.estimate(a_run("sd", tiny_sd), GPU)
    assert found.peak >= found.allocated + memory.place.CONTEXT and found.fits
