"""Files in other layouts, read back by diffusers' own converters: the same weights, or the same products where fusing changes the rank."""

from __future__ import annotations

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
from torch import Tensor, nn

from directalign.export.lora_formats import LoraFormat, LowRank, converted, fuse
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

FLUX_TARGETS = (*JOINT, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


def tiny_flux_network() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )


def tiny_flux2_network() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 2, 2),
    )


def tiny_qwen_network() -> nn.Module:
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )


def tiny_z_image_network() -> nn.Module:
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
    )


def tiny_sd3_network() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def read_back(pipeline: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return pipeline.lora_state_dict(dict(tensors))


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def assert_same_products(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    ours, theirs = products(found), products(expected)
    assert ours.keys() == theirs.keys()
    for layer, product in theirs.items():
        torch.testing.assert_close(ours[layer], product)


# --- FLUX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_flux_double_blocks_come_back_identical(form: LoraFormat) -> None:
    updates = {
        name: each
        for name, each in random_updates(tiny_flux_network(), FLUX_TARGETS).items()
        if name.startswith("transformer_blocks.")
    }
    assert len(updates) == 24
    assert_identical(read_back(FluxPipeline, converted(updates, "flux", form)), as_file(updates))


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_flux_single_blocks_at_their_real_width_come_back_identical(form: LoraFormat) -> None:
    block = "single_transformer_blocks.37"
    shapes = {f"{block}.{layer}": (3072, 3072) for layer in QKV} | {
        f"{block}.proj_mlp": (12288, 3072),
        f"{block}.proj_out": (3072, 15360),
    }
    updates = updates_of_shape(shapes)
    tensors = converted(updates, "flux", form)
    assert len([key for key in tensors if "linear1" in key]) == 3
    assert_identical(read_back(FluxPipeline, tensors), as_file(updates))


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("trained", [QKV, ("attn.to_k",), ("attn.to_q", "proj_mlp")])
def test_what_is_not_trained_of_a_fused_layer_comes_back_as_nothing(
    rank: int, trained: tuple[str, ...]
) -> None:
    block = "single_transformer_blocks.0"
    updates = updates_of_shape(
        {f"{block}.{layer}": (12288 if layer == "proj_mlp" else 3072, 3072) for layer in trained},
        rank,
    )
    probe = torch.randn(3072, 3)
    back = applied(read_back(FluxPipeline, converted(updates, "flux", "kohya")), probe)
    expected = applied(as_file(updates), probe)
    for layer, answer in back.items():
        torch.testing.assert_close(
            answer, expected.get(layer, torch.zeros_like(answer)), rtol=1e-4, atol=1e-4
        )
    assert back.keys() >= expected.keys()


def test_the_names_are_those_of_sd_scripts() -> None:
    updates = {
        name: each
        for name, each in random_updates(tiny_flux_network(), FLUX_TARGETS).items()
        if name.startswith("transformer_blocks.")
    }
    tensors = converted(updates, "flux", "kohya")
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= tensors.keys()
    assert tensors[f"{stem}.lora_down.weight"].shape[0] == tensors[f"{stem}.alpha"] == 6
    assert "diffusion_model.double_blocks.1.txt_mlp.0.lora_up.weight" in converted(
        updates, "flux", "comfyui"
    )


def test_single_blocks_of_a_smaller_flux_are_refused() -> None:
    updates = random_updates(tiny_flux_network(), ("attn.to_q",))
    with pytest.raises(
        DirectAlignError,
        match=r"attn\.to_q: readers of the comfyui layout take single_blocks\.0\.linear1 at flux's full width",
    ):
        converted(updates, "flux", "comfyui")


# --- other transformers -----------------------------------------------------------------------------------------------


def test_flux2_comes_back_with_the_same_products() -> None:
    targets = (*JOINT, "linear_in", "linear_out", "attn.to_qkv_mlp_proj", "attn.to_out")
    updates = random_updates(tiny_flux2_network(), targets)
    assert_same_products(
        read_back(Flux2KleinPipeline, converted(updates, "flux2_klein", "comfyui")),
        as_file(updates),
    )
    assert_identical(
        read_back(Flux2KleinPipeline, converted(updates, "flux2_klein", "kohya")), as_file(updates)
    )


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_qwen_image_comes_back_identical(form: LoraFormat) -> None:
    updates = random_updates(tiny_qwen_network(), (*JOINT, "net.0.proj", "net.2"))
    assert len(updates) == 24
    assert_identical(
        read_back(QwenImagePipeline, converted(updates, "qwen_image", form)), as_file(updates)
    )


def test_z_image_comes_back() -> None:
    targets = (
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    )
    updates = random_updates(tiny_z_image_network(), targets)
    assert len(updates) == 28
    assert_identical(
        read_back(ZImagePipeline, converted(updates, "z_image", "comfyui")), as_file(updates)
    )
    kohya = converted(updates, "z_image", "kohya")
    assert "lora_unet_layers_1_attention_qkv.lora_up.weight" in kohya
    assert_same_products(read_back(ZImagePipeline, kohya), as_file(updates))


# --- Stable Diffusion 3 -----------------------------------------------------------------------------------------------


def test_sd3_for_comfyui_is_the_diffusers_file() -> None:
    updates = random_updates(tiny_sd3_network(), JOINT)
    tensors = converted(updates, "sd3", "comfyui")
    assert_identical(tensors, as_file(updates))
    assert_identical(read_back(StableDiffusion3Pipeline, tensors), as_file(updates))


def test_sd3_for_kohya_adds_to_the_original_checkpoint_what_it_adds_in_diffusers() -> None:
    """Diffusers reads no kohya file for SD3, but it does read the original checkpoint: the updates go the same way as the weights."""
    network = tiny_sd3_network()
    updates = random_updates(
        network,
        (
            *JOINT,
            "attn2.to_q",
            "attn2.to_k",
            "attn2.to_v",
            "attn2.to_out.0",
            "ff.net.0.proj",
            "ff_context.net.2",
        ),
    )
    kohya = converted(updates, "sd3", "kohya")
    checkpoint = original_sd3_checkpoint(network)
    stems = {
        key.replace(".", "_").removesuffix("_weight"): key
        for key in checkpoint
        if key.endswith("weight")
    }
    deltas = {name: torch.zeros_like(each) for name, each in checkpoint.items()}
    for key in [key for key in kohya if key.endswith(".lora_down.weight")]:
        stem = key.removesuffix(".lora_down.weight")
        deltas[stems[stem.removeprefix("lora_unet_")]] += (
            kohya[f"{stem}.lora_up.weight"] @ kohya[key]
        )
    moved = {
        name: delta
        for name, delta in convert_sd3_transformer_checkpoint_to_diffusers(deltas).items()
        if delta.any()
    }
    expected = products(as_file(updates))
    assert {f"transformer.{name.removesuffix('.weight')}" for name in moved} == expected.keys()
    for name, delta in moved.items():
        torch.testing.assert_close(delta, expected[f"transformer.{name.removesuffix('.weight')}"])


def original_sd3_checkpoint(network: Any) -> dict[str, Tensor]:
    """Zeros under Stability AI's names and shapes, for the layers of a diffusers network."""
    width, layers, joint = 16, network.config.num_layers, network.config.joint_attention_dim
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 64, width),
        "x_embedder.proj.weight": (width, 16, 2, 2),
        "x_embedder.proj.bias": (width,),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.0", "y_embedder.mlp.2"):
        linear(name, width, width)
    linear("context_embedder", width, joint)
    linear("final_layer.linear", 64, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    for layer in range(layers):
        last = layer == layers - 1
        for side in ("x_block", "context_block"):
            block = f"joint_blocks.{layer}.{side}"
            attentions = (
                ("attn", "attn2")
                if side == "x_block" and layer in network.config.dual_attention_layers
                else ("attn",)
            )
            for attention in attentions:
                linear(f"{block}.{attention}.qkv", 3 * width, width)
                shapes.update({f"{block}.{attention}.ln_{each}.weight": (8,) for each in "qk"})
                if not (last and side == "context_block"):
                    linear(f"{block}.{attention}.proj", width, width)
            linear(f"{block}.adaLN_modulation.1", 6 * width, width)
            if not (last and side == "context_block"):
                linear(f"{block}.mlp.fc1", 4 * width, width)
                linear(f"{block}.mlp.fc2", width, 4 * width)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


# --- refusals and algebra ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("flux", "proj_out"),
        ("flux", "norm_out.linear"),
        ("sd", "conv_in"),
        ("sdxl", "time_embedding.linear_1"),
        ("sd3", "proj_out"),
    ],
)
def test_a_layer_without_a_name_is_refused_by_its_name(family: str, layer: str) -> None:
    with pytest.raises(
        DirectAlignError,
        match=rf"{layer} has no name in the kohya {family} layout: use --format diffusers",
    ):
        converted(updates_of_shape({layer: (4, 4)}), family, "kohya")


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(DirectAlignError, match=r"no kohya layout is known for model\.family sora"):
        converted(updates_of_shape({"a": (4, 4)}), "sora", "kohya")


def test_fusing_adds_ranks_and_keeps_every_row() -> None:
    first, third = (
        LowRank(torch.randn(2, 5), torch.randn(3, 2)),
        LowRank(torch.randn(4, 5), torch.randn(12, 4)),
    )
    whole = fuse({0: first, 2: third}, (1, 1, 4))
    assert whole.rank == 6 and whole.up.shape == (18, 6)
    torch.testing.assert_close(
        whole.up @ whole.down,
        torch.cat([first.up @ first.down, torch.zeros(3, 5), third.up @ third.down]),
    )


def test_layers_out_of_proportion_do_not_fuse() -> None:
    wrong = {
        0: LowRank(torch.randn(2, 5), torch.randn(3, 2)),
        1: LowRank(torch.randn(2, 5), torch.randn(4, 2)),
    }
    with pytest.raises(
        DirectAlignError, match=r"layers of heights \[3, 4\] do not fuse in proportions \(1, 1, 1\)"
    ):
        fuse(wrong, (1, 1, 1))
