"""The memory estimate against the real thing: parameters are exact, activations are of the size that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from directalign import memory
from directalign.config import Lora, Run
from tiny import tiny_flux, tiny_sd  # noqa: F401 (fixtures)


def a_run(family: str, folder: Path, **model: Any) -> Run:
    guidance = {"embedded_guidance": 1.0 if family == "flux" else None}
    given: dict[str, Any] = {"name": "test", "reward": {"name": "pixels", "statistic": "redness"}, "data": {"prompts": "world"}, "train": {"num_steps": 3}}
    given |= {"model": {"family": family, "path": str(folder), **model}, "method": {"form": "absolute", **guidance}, "rollout": guidance}
    return Run.model_validate(given)


def sizes(run: Run) -> dict[str, int]:
    return {item.part: item.size for item in memory.estimate(run).items}


def test_what_is_trained_is_counted_exactly(tiny_flux: Path) -> None:  # noqa: F811
    network = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    everything = sum(parameter.numel() for parameter in network.parameters())
    full = memory.estimate(a_run("flux", tiny_flux, tune="full"))
    assert full.trained == everything
    targets = ["attn.to_q", "ff.net.2", "proj_mlp"]
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=3, target_modules=targets))
    adapters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert memory.lora_parameters(memory.shapes(tiny_flux / "transformer"), Lora(rank=3, targets=targets), ()) == adapters


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_each_trained_number_costs_16_bytes(tiny_sd: Path, tune: str) -> None:  # noqa: F811
    run = a_run("sd", tiny_sd, tune=tune)
    found = sizes(run)
    trained = memory.estimate(run).trained
    name = "unet, trained" if tune == "full" else "adapters, trained"
    assert (found[name], found["gradient"], found["AdamW"]) == (4 * trained, 4 * trained, 8 * trained)
    averaged = run.model_copy(update={"train": run.train.model_copy(update={"ema_decay": 0.99})})
    assert sizes(averaged)["average of weights"] == 4 * trained


def test_bfloat16_halves_what_is_frozen(tiny_flux: Path) -> None:  # noqa: F811
    single, half = sizes(a_run("flux", tiny_flux)), sizes(a_run("flux", tiny_flux, dtype="bfloat16"))
    assert all(2 * half[part] == single[part] for part in ("text_encoder", "text_encoder_2", "vae", "transformer"))
    assert half["adapters, trained"] == single["adapters, trained"]


def test_checkpointing_saves_activations(tiny_sd: Path) -> None:  # noqa: F811
    kept, recomputed = sizes(a_run("sd", tiny_sd)), sizes(a_run("sd", tiny_sd, gradient_checkpointing=True))
    assert recomputed["activations, unet"] < kept["activations, unet"] and recomputed["activations, vae"] < kept["activations, vae"]


def kept_bytes(network: nn.Module, call: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd keeps during `call`, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_allowance_for_a_transformer_is_what_autograd_keeps() -> None:
    width, tokens, layers = 64, 80, 3
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    inputs = {"hidden_states": torch.randn(1, 64, 16), "timestep": torch.rand(1), "pooled_projections": torch.randn(1, 16)}
    inputs |= {"encoder_hidden_states": torch.randn(1, 16, 16), "txt_ids": torch.zeros(16, 3), "img_ids": torch.zeros(64, 3)}
    measured = kept_bytes(network, lambda: network(**inputs))
    assert 0.8 < measured / (4 * width * tokens * layers * memory.KEPT_PER_TOKEN["full"]) < 1.25


def test_the_allowance_for_the_decoder_is_what_autograd_keeps() -> None:
    channels, side = (16, 32), 32
    vae = AutoencoderKL(
        block_out_channels=channels, layers_per_block=2, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.requires_grad_(False)
    latents = torch.randn(1, 4, side // 2, side // 2, requires_grad=True)
    measured = kept_bytes(vae, lambda: vae.decode(latents))  # pyright: ignore
    cells = sum(3 * c * side**2 // 4**level for level, c in enumerate(channels))
    assert 0.7 < measured / (4 * cells * memory.KEPT_PER_CELL_VAE) < 1.3


@pytest.mark.parametrize(
    ("method", "calls", "decodes"),
    [({"name": "draft", "grad_steps": 3}, 3, True), ({"name": "leapalign"}, 2, True), ({"name": "alignprop"}, 1, True), ({"name": "flow_grpo"}, 8, False)],
)
def test_a_method_keeps_as_many_calls_as_it_differentiates_at_once(tiny_sd: Path, method: dict[str, Any], calls: int, decodes: bool) -> None:  # noqa: F811
    """A policy gradient keeps one call, of a whole group, and never differentiates the decoder."""
    one = a_run("sd", tiny_sd)
    other = Run.model_validate({**one.model_dump(), "method": method})
    assert sizes(other)["activations, unet"] == calls * sizes(one)["activations, unet"]
    assert ("activations, vae" in sizes(other)) is decodes


def test_a_divergence_from_the_base_needs_a_second_copy_of_weights_that_are_trained_whole(tiny_sd: Path) -> None:  # noqa: F811
    def copies(**model: str) -> int | None:
        run = a_run("sd", tiny_sd, **model)
        with_divergence = Run.model_validate({**run.model_dump(), "method": {"name": "flow_grpo", "kl_weight": 0.1}})
        return sizes(with_divergence).get("frozen copy of weights")

    assert copies(tune="full") == 4 * memory.estimate(a_run("sd", tiny_sd, tune="full")).trained
    assert copies(tune="lora") is None
