"""From diffusers' names to the layouts of makers whose models are not exported as one file.

As `directalign.models.original_layouts`: written from the layouts, not from converters.
"""

import torch
from torch import Tensor

from directalign.models.original_layouts import (
    DOUBLE,
    ENDS,
    IMAGE_QKV,
    TEXT_QKV,
    Weights,
    flux,
    fused,
    renamed,
    swapped,
)


def flux2(weights: Weights) -> dict[str, Tensor]:
    """FLUX.2: modulations shared by all blocks, attention fused in double blocks."""
    result = fused(fused(weights, TEXT_QKV, "txt_attn.qkv"), IMAGE_QKV, "img_attn.qkv")
    single = r"""
        ^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj        single_blocks.\1.linear1
        ^single_transformer_blocks\.(\d+)\.attn\.to_out                 single_blocks.\1.linear2
        ^single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)\.weight     single_blocks.\1.norm.\2_norm.scale
        \.ff\.linear_in                                         .img_mlp.0
        \.ff\.linear_out                                        .img_mlp.2
        \.ff_context\.linear_in                                 .txt_mlp.0
        \.ff_context\.linear_out                                .txt_mlp.2
        ^time_guidance_embed\.timestep_embedder\.linear_1       time_in.in_layer
        ^time_guidance_embed\.timestep_embedder\.linear_2       time_in.out_layer
        _modulation(_img|_txt|)\.linear                         _modulation\1.lin
    """  # noqa: E501
    return swapped(renamed(result, single + DOUBLE + ENDS), "final_layer.adaLN_modulation.1")


def sd3(weights: Weights) -> dict[str, Tensor]:
    """SD3: joint blocks of an image and a context half; the last context half swaps too."""
    result = fused(weights, TEXT_QKV, "context_block.attn.qkv")
    result = fused(result, IMAGE_QKV, "x_block.attn.qkv")
    result = fused(result, IMAGE_QKV.replace("attn", "attn2"), "x_block.attn2.qkv")
    blocks = [int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks.")]
    result = renamed(
        result,
        r"""
        ^transformer_blocks                                 joint_blocks
        \.norm1\.linear                                     .x_block.adaLN_modulation.1
        \.norm1_context\.linear                             .context_block.adaLN_modulation.1
        \.attn\.norm_added_(q|k)\.                          .context_block.attn.ln_\1.
        \.(attn2?)\.norm_(q|k)\.                            .x_block.\1.ln_\2.
        \.(attn2?)\.to_out\.0                               .x_block.\1.proj
        \.attn\.to_add_out                                  .context_block.attn.proj
        \.ff\.net\.0\.proj                                  .x_block.mlp.fc1
        \.ff\.net\.2                                        .x_block.mlp.fc2
        \.ff_context\.net\.0\.proj                          .context_block.mlp.fc1
        \.ff_context\.net\.2                                .context_block.mlp.fc2
        ^pos_embed\.pos_embed                               pos_embed
        ^pos_embed\.proj                                    x_embedder.proj
        ^time_text_embed\.timestep_embedder\.linear_1       t_embedder.mlp.0
        ^time_text_embed\.timestep_embedder\.linear_2       t_embedder.mlp.2
        ^time_text_embed\.text_embedder\.linear_1           y_embedder.mlp.0
        ^time_text_embed\.text_embedder\.linear_2           y_embedder.mlp.2
        ^norm_out\.linear                                   final_layer.adaLN_modulation.1
        ^proj_out                                           final_layer.linear
        """,
    )
    last = f"joint_blocks.{max(blocks)}.context_block.adaLN_modulation.1"
    return swapped(result, "final_layer.adaLN_modulation.1", last)


def z_image(weights: Weights) -> dict[str, Tensor]:
    """Z-Image for ComfyUI: fused attention, one patch size, a norm that no network has."""
    rules = r"""
        ^all_(final_layer|x_embedder)\.2-1\.    \1.
        \.attention\.to_out\.0\.                .attention.out.
        \.attention\.norm_(q|k)\.               .attention.\1_norm.
    """
    result = renamed(fused(weights, "to_q to_k to_v", "qkv"), rules)
    return result | {"norm_final.weight": torch.ones(4)}


def chroma(weights: Weights) -> dict[str, Tensor]:
    """Chroma: FLUX.1 with a network of its own for the modulations."""
    rules = r"""
        ^(distilled_guidance_layer\.layers\.\d+)\.linear_1           \1.in_layer
        ^(distilled_guidance_layer\.layers\.\d+)\.linear_2           \1.out_layer
        ^(distilled_guidance_layer\.norms\.\d+)\.weight             \1.scale
    """
    return renamed(flux(weights), rules)


def lumina2(weights: Weights) -> dict[str, Tensor]:
    """Lumina 2: fused attention, a norm that no network has."""
    rules = r"""
        ^time_caption_embed\.caption_embedder                   cap_embedder
        ^time_caption_embed\.timestep_embedder\.linear_1        t_embedder.mlp.0
        ^time_caption_embed\.timestep_embedder\.linear_2        t_embedder.mlp.2
        ^norm_out\.linear_1                                     final_layer.adaLN_modulation.1
        ^norm_out\.linear_2                                     final_layer.linear
        \.norm1\.linear\.                                      .adaLN_modulation.1.
        \.norm1\.(norm\.)?                                     .attention_norm1.
        \.norm2\.                                              .attention_norm2.
        \.feed_forward\.linear_(\d)\.                          .feed_forward.w\1.
        \.attn\.to_out\.0\.                                    .attention.out.
        \.attn\.norm_(q|k)\.                                   .attention.\1_norm.
        \.attn\.                                               .attention.
    """
    result = renamed(fused(weights, "to_q to_k to_v", "qkv"), rules)
    return result | {"norm_final.weight": torch.ones(4)}
