"""Traces in shapes alone against real calls on real numbers, byte for byte, and blocks left out against blocks traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign.config import LoRAConfig, ModelConfig
from directalign.memory.architecture import model_architecture
from directalign.memory.blocks import block_counts, by_blocks, with_blocks
from directalign.memory.calls import Shape, answer, arguments
from directalign.memory.judges import Judge
from directalign.memory.judging import Judged, decoded, judging
from directalign.memory.live import Piece, measured
from directalign.memory.traces import Denoiser, denoiser_call, encoding_prompts, prepared
from directalign.memory.weightless import Part, built, residents
from directalign.models import model_class
from directalign.rewards.common import Preprocessing
from tiny import tiny_flux, tiny_sd  # noqa: F401 (fixtures)

FLUX = Part.of(
    "FluxTransformer2DModel",
    {
        "in_channels": 16, "num_layers": 4, "num_single_layers": 5, "attention_head_dim": 16, "num_attention_heads": 4,
        "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": [4, 6, 6],
    },
)  # fmt: skip
SHAPE = Shape(2, 8, 8, 12, torch.float32)
CLIP = Part.of(
    "CLIPModel",
    {
        "projection_dim": 8,
        "text_config": {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
    },
)  # fmt: skip


def denoiser(part: Part, family: str = "flux", **model: Any) -> Denoiser:
    settings = ModelConfig(family=family, path="", lora=LoRAConfig(rank=4), **model)
    return Denoiser(family, part, settings, model_class(family).lora_targets, like_gpu=False)


def real(of: Denoiser, shape: Shape, with_gradient: bool) -> Piece:
    """The same call on real numbers, in a network of its own making."""
    network = prepared(built(of.part), of.model, of.targets)
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.grad = (
            torch.zeros_like(parameter) if parameter.requires_grad and with_gradient else None
        )
    given = arguments(of.family, of.part.config, shape)

    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=shape.dtype == torch.bfloat16):
            return answer(network(**given))

    with torch.set_grad_enabled(with_gradient):
        return measured(call, residents(network))


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"gradient_checkpointing": True},
        {"tune": "full"},
        {"dtype": "bfloat16"},
        {"tune": "full", "dtype": "bfloat16", "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_a_trace_of_a_transformer_is_what_a_real_call_takes(model: dict[str, Any]) -> None:
    of, shape = (
        denoiser(with_blocks(FLUX, {"num_layers": 1, "num_single_layers": 2}), **model),
        Shape(2, 8, 8, 12, getattr(torch, model.get("dtype", "float32"))),
    )
    assert denoiser_call(of, shape, True) == real(of, shape, True)
    assert denoiser_call(of, shape, False) == real(of, shape, False)


def test_a_trace_of_a_unet_is_what_a_real_call_takes(tiny_sd: Path) -> None:  # noqa: F811
    part = model_architecture(ModelConfig(family="sd", path=str(tiny_sd))).parts["unet"]
    of = denoiser(part, "sd", gradient_checkpointing=True)
    assert denoiser_call(of, SHAPE, True) == real(of, SHAPE, True)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_trace_of_decoder_and_reward_is_what_a_real_call_takes(
    tiny_flux: Path, recompute: bool
) -> None:
    part = model_architecture(ModelConfig(family="flux", path=str(tiny_flux))).parts["vae"]
    preprocessing = Preprocessing(16, (16, 16), (0.5,) * 3, (0.5,) * 3)
    judge = Judge(
        "reward", "clip", CLIP, torch.float32, preprocessing, recompute=False, texts=2, tokens=64
    )
    traced = judging(Judged(part, torch.float32, recompute, (judge,)), (2, 4, 8, 8), True)
    vae, reward = built(part).to_empty(device="cpu"), built(CLIP).to_empty(device="cpu")
    for parameter in (*vae.parameters(), *reward.parameters()):
        torch.nn.init.normal_(parameter, std=0.02)
    reward.vision_model.embeddings.position_ids = torch.arange(17)[None]
    if recompute:
        vae.enable_gradient_checkpointing()
    x0 = torch.randn(2, 4, 8, 8, requires_grad=True)

    def call() -> Tensor:
        images = decoded(vae, x0, recompute).clamp(0, 1)
        features = reward.visual_projection(
            reward.vision_model(pixel_values=preprocessing(images)).pooler_output
        )
        return torch.stack([torch.nn.functional.normalize(features, dim=-1).sum()]).sum()

    assert traced == measured(call, [x0, *residents(vae), *residents(reward)])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_blocks_left_out_add_what_they_would_have(checkpointing: bool, with_gradient: bool) -> None:
    def trace(part: Part) -> Piece:
        return real(denoiser(part, gradient_checkpointing=checkpointing), SHAPE, with_gradient)

    assert by_blocks(FLUX, trace) == trace(FLUX)


def test_kinds_of_blocks_are_told_apart() -> None:
    medium = model_architecture(
        ModelConfig(family="sd3", path="stabilityai/stable-diffusion-3.5-medium")
    ).parts["transformer"]
    assert block_counts(medium) == {"dual": 13, "plain": 11}
    assert with_blocks(medium, {"dual": 2, "plain": 3}).config["dual_attention_layers"] == [0, 1]
    sdxl = model_architecture(
        ModelConfig(family="sdxl", path="stabilityai/stable-diffusion-xl-base-1.0")
    ).parts["unet"]
    assert block_counts(sdxl) == {"deepest": 10}
    assert with_blocks(sdxl, {"deepest": 3}).config["transformer_layers_per_block"] == [1, 2, 3]
    listed = Part.of(
        "Qwen3ForCausalLM", {"num_hidden_layers": 28, "layer_types": ["full_attention"] * 28}
    )
    assert with_blocks(listed, {"num_hidden_layers": 2}).config == {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
    }


def test_checkpointing_keeps_less_and_rounded_layers_take_scratch() -> None:
    wide = FLUX.changed(num_attention_heads=8, num_layers=2, num_single_layers=2)
    pieces = {
        name: denoiser_call(
            denoiser(wide, dtype="bfloat16", **model), Shape(1, 8, 8, 12, torch.bfloat16), True
        )
        for name, model in {
            "kept": {},
            "checkpointed": {"gradient_checkpointing": True},
            "4bit": {"quantization": "4bit"},
        }.items()
    }
    assert pieces["checkpointed"].kept < pieces["kept"].kept / 3
    assert pieces["4bit"].kept == pieces["kept"].kept, "a rounded layer keeps nothing of its own"
    assert pieces["4bit"].backward > pieces["kept"].backward


@pytest.mark.parametrize(
    ("family", "hub_id"),
    [
        ("sd3", "stabilityai/stable-diffusion-3.5-large"),
        ("qwen_image", "Qwen/Qwen-Image"),
        ("z_image", "Tongyi-MAI/Z-Image-Turbo"),
        ("flux2_klein", "black-forest-labs/FLUX.2-klein-4B"),
    ],
)
def test_every_family_of_transformers_can_be_called(family: str, hub_id: str) -> None:
    """A checkpointed block keeps its two inputs at most: the tokens of the image and of the prompt, in the network's dtype."""
    part = model_architecture(ModelConfig(family=family, path=hub_id)).parts["transformer"]
    one, two = (
        denoiser_call(
            Denoiser(
                family,
                part,
                ModelConfig(family=family, path="", tune="full", dtype="bfloat16"),
                (),
                True,
            ),
            Shape(b, 16, 16, 8, torch.bfloat16),
            False,
        )
        for b in (1, 2)
    )
    assert 0 < one.kept < two.kept < one.forward < two.forward + 1


def test_an_encoder_takes_more_for_longer_prompts() -> None:
    part = Part.of(
        "T5EncoderModel",
        {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 6, "num_heads": 2},
    )
    short, long = (encoding_prompts(part, torch.float32, 2, tokens) for tokens in (8, 16))
    assert 0 < short.forward < long.forward
