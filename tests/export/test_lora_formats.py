"""LoRA formats read back by diffusers' converters: equal factors, or equal products when fused."""

from typing import Any

import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from torch import Tensor

from directalign.export.lora_formats import convert
from directalign.models.lora_files import LowRank
from directalign.types import DirectAlignError
from low_rank_updates import (
    JOINT,
    QKV,
    applied,
    as_file,
    products,
    random_updates,
    updates_of_shape,
)
from models import original_layouts

HEADS = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16}
FLUX = {**HEADS, "in_channels": 16, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4)}
NETWORKS: dict[str, Any] = {
    "flux": lambda: FluxTransformer2DModel(num_layers=2, num_single_layers=1, **FLUX),
    "flux2_klein": lambda: Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, axes_dims_rope=(2, 2, 2, 2), **HEADS
    ),
    "qwen_image": lambda: QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, axes_dims_rope=(2, 2, 4), **HEADS
    ),
    "z_image": lambda: ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[4, 6, 6],
    ),
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=8, num_layers=3, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm", **HEADS,
    ),
}  # fmt: skip
PIPELINES: dict[str, Any] = {
    "flux": FluxPipeline,
    "flux2_klein": Flux2KleinPipeline,
    "qwen_image": QwenImagePipeline,
    "z_image": ZImagePipeline,
    "sd3": StableDiffusion3Pipeline,
}
FF = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
FF2, SINGLE2 = ("linear_in", "linear_out"), ("attn.to_qkv_mlp_proj", "attn.to_out")
TARGETS = {
    "flux": (*JOINT, *FF),
    "flux2_klein": (*JOINT, *FF2, *SINGLE2),
    "qwen_image": (*JOINT, "net.0.proj", "net.2"),
    "z_image": (
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
    "sd3": JOINT,
}
COUNTS = {"flux": 24, "flux2_klein": 16, "qwen_image": 24, "z_image": 28, "sd3": 23}


def updates_of(model: str) -> dict[str, LowRank]:
    """Of all target layers; of FLUX only double blocks, since single ones need the full width."""
    found = random_updates(NETWORKS[model](), TARGETS[model])
    if model == "flux":
        found = {name: each for name, each in found.items() if name.startswith("transformer_")}
    return found


def read_back(model: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return PIPELINES[model].lora_state_dict(dict(tensors))


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize(
    ("model", "form", "fused"),
    [
        ("flux", "comfyui", False),
        ("flux", "kohya", False),
        ("flux2_klein", "comfyui", True),
        ("flux2_klein", "kohya", False),
        ("qwen_image", "comfyui", False),
        ("qwen_image", "kohya", False),
        ("z_image", "comfyui", False),
        ("z_image", "kohya", True),
        ("sd3", "comfyui", False),
    ],
)
def test_diffusers_reads_the_same_update(model, form, fused):
    updates = updates_of(model)
    assert len(updates) == COUNTS[model]
    expected = as_file(updates)
    found = read_back(model, convert(updates, model, form))
    if fused:  # diffusers splits the factors of fused layers otherwise
        found, expected = products(found), products(expected)
        assert found.keys() == expected.keys()
        for layer in expected:
            torch.testing.assert_close(found[layer], expected[layer])
    else:
        assert_identical(found, expected)


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_flux_single_blocks_at_full_width_are_identical(form):
    block = "single_transformer_blocks.37"
    shapes = {f"{block}.{layer}": (3072, 3072) for layer in QKV}
    shapes |= {f"{block}.proj_mlp": (12288, 3072), f"{block}.proj_out": (3072, 15360)}
    updates = updates_of_shape(shapes)
    tensors = convert(updates, "flux", form)
    assert len([key for key in tensors if "linear1" in key]) == 3
    assert_identical(read_back("flux", tensors), as_file(updates))


@pytest.mark.parametrize(
    ("rank", "trained"), [(4, QKV), (2, ("attn.to_k",)), (2, ("attn.to_q", "proj_mlp"))]
)
def test_untrained_rows_of_a_fused_layer_are_zero(rank, trained):
    heights = {layer: 12288 if layer == "proj_mlp" else 3072 for layer in trained}
    block = "single_transformer_blocks.0"
    updates = updates_of_shape({f"{block}.{n}": (h, 3072) for n, h in heights.items()}, rank)
    probe = torch.randn(3072, 3)
    found = applied(read_back("flux", convert(updates, "flux", "kohya")), probe)
    expected = applied(as_file(updates), probe)
    assert found.keys() >= expected.keys()
    for layer, value in found.items():
        wanted = expected.get(layer, torch.zeros_like(value))
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)


def test_keys_are_those_of_sd_scripts_and_comfyui():
    updates = updates_of("flux")
    tensors = convert(updates, "flux", "kohya")
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= tensors.keys()
    assert tensors[f"{stem}.lora_down.weight"].shape[0] == tensors[f"{stem}.alpha"] == 6
    key = "diffusion_model.double_blocks.1.txt_mlp.0.lora_up.weight"
    assert key in convert(updates, "flux", "comfyui")
    key = "lora_unet_layers_1_attention_qkv.lora_up.weight"
    assert key in convert(updates_of("z_image"), "z_image", "kohya")


def test_sd3_for_kohya_equals_the_conversion_of_a_checkpoint():
    """Diffusers reads no kohya file for SD3, so its checkpoint converter maps the updates back."""
    network, second = NETWORKS["sd3"](), tuple(f"attn2.{each}" for each in ("to_q", "to_k", "to_v"))
    targets = (*JOINT, *second, "attn2.to_out.0", "ff.net.0.proj", "ff_context.net.2")
    updates = random_updates(network, targets)
    kohya = convert(updates, "sd3", "kohya")
    zeros = {name: torch.zeros_like(each) for name, each in network.state_dict().items()}
    changes = original_layouts.sd3(zeros)
    stems = {key.replace(".", "_"): key for key in changes if key.endswith("weight")}
    for key in [key for key in kohya if key.endswith(".lora_down.weight")]:
        stem = key.removesuffix(".lora_down.weight")
        update = kohya[f"{stem}.lora_up.weight"] @ kohya[key]
        changes[stems[f"{stem.removeprefix('lora_unet_')}_weight"]] += update
    converted = convert_sd3_transformer_checkpoint_to_diffusers(changes).items()
    found = {
        f"transformer.{n.removesuffix('.weight')}": each for n, each in converted if each.any()
    }
    expected = products(as_file(updates))
    assert found.keys() == expected.keys()
    for layer in expected:
        torch.testing.assert_close(found[layer], expected[layer])


WITHOUT_NAME = {
    ("proj_out", "flux"): "proj_out has no name in the kohya format of flux; use --format",
    ("norm_out.linear", "flux"): "norm_out.linear has no name in the kohya format",
    ("conv_in", "sd"): "conv_in has no name in the kohya format of sd",
    ("time_embedding.linear_1", "sdxl"): "has no name in the kohya format of sdxl",
    ("proj_out", "sd3"): "proj_out has no name in the kohya format of sd3",
    ("a", "sora"): r"no kohya format is known for model\.architecture sora",
    ("single_transformer_blocks.0.attn.to_q", "flux"): (
        r"--format kohya: readers accept single_blocks\.0\.linear1 of flux only at its full"
    ),
}


def test_layers_without_a_name_are_refused():
    for (layer, model), message in WITHOUT_NAME.items():
        with pytest.raises(DirectAlignError, match=message):
            convert(updates_of_shape({layer: (4, 4)}), model, "kohya")
