"""From diffusers' names to the layouts in which the makers publish SD 1, SDXL and FLUX.1.

Written from those layouts, not from diffusers' converters. Each function takes the state dict of a
diffusers or transformers model and gives the tensors of the original file, without the prefix of an
all-in-one file (`single_file.PREFIX`, `single_file.PREFIXES`).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def renamed(weights: Weights, rules: str) -> dict[str, Tensor]:
    """Every name under each rule in turn, one a line: a regular expression and a replacement."""
    pairs = [line.split() for line in rules.splitlines() if line.strip()]
    result = {}
    for name, tensor in weights.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement.replace("''", ""), name)
        result[name] = tensor
    return result


def prefixed(prefix: str, weights: Weights) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def swapped(weights: dict[str, Tensor], *layers: str) -> dict[str, Tensor]:
    """Scale before shift in diffusers is shift before scale in the originals."""
    return weights | {
        key: torch.cat(tensor.chunk(2)[::-1])
        for key, tensor in weights.items()
        if key.rpartition(".")[0] in layers
    }


def fused(weights: Weights, separate: str, joint: str) -> dict[str, Tensor]:
    """Wherever all layers `separate` are, they are stacked in that order as the layer `joint`."""
    first, *others = separate.split()
    result = dict(weights)
    for key in weights:
        for kind in (".weight", ".bias"):
            path = key.removesuffix(f".{first}{kind}")
            names = [f"{path}.{name}{kind}" for name in (first, *others)]
            if path != key and all(name in weights for name in names):
                result[f"{path}.{joint}{kind}"] = torch.cat([result.pop(name) for name in names])
    return result


def ldm_unet(weights: Weights, layers_per_block: int) -> dict[str, Tensor]:
    """A UNet of Stable Diffusion: input, middle and output blocks, counted through all levels."""
    n = layers_per_block + 1
    attentive = {
        name.split(".")[1] for name in weights if re.match(r"up_blocks\.\d+\.attentions", name)
    }

    def place(name: str) -> str:
        kind, level, what, index, *rest = name.split(".")
        at, last, part = int(level) * n + int(index), int(level) * n + n, int(what != "resnets")
        match kind, what:
            case "down_blocks", "downsamplers":
                return ".".join(["input_blocks", str(last), "0.op", *rest[1:]])
            case "down_blocks", _:
                return ".".join(["input_blocks", str(at + 1), str(part), *rest])
            case _, "upsamplers":
                part = 2 if level in attentive else 1
                return ".".join(["output_blocks", str(last - 1), str(part), *rest])
            case _:
                return ".".join(["output_blocks", str(at), str(part), *rest])

    placed = {
        place(name) if name.startswith(("down_blocks", "up_blocks")) else name: tensor
        for name, tensor in weights.items()
    }
    middle = r"""
        ^mid_block\.resnets\.0                  middle_block.0
        ^mid_block\.attentions\.0               middle_block.1
        ^mid_block\.resnets\.1                  middle_block.2
        ^time_embedding\.linear_1               time_embed.0
        ^time_embedding\.linear_2               time_embed.2
        ^add_embedding\.linear_1                label_emb.0.0
        ^add_embedding\.linear_2                label_emb.0.2
        ^conv_in                                input_blocks.0.0
        ^conv_norm_out                          out.0
        ^conv_out                               out.2
    """
    resnet = r"""
        norm1 in_layers.0
        conv1 in_layers.2
        time_emb_proj emb_layers.1
        norm2 out_layers.0
        conv2 out_layers.3
        conv_shortcut skip_connection
    """
    in_resnet = r"^((?:in|out)put_blocks\.\d+\.0|middle_block\.[02])"
    pairs = [line.split() for line in resnet.strip().splitlines()]
    rules = "\n".join(rf"{in_resnet}\.{ours}\. \1.{theirs}." for ours, theirs in pairs)
    return renamed(renamed(placed, middle), rules)


def ldm_vae(weights: Weights, levels: int) -> dict[str, Tensor]:
    """The autoencoder: the decoder counts levels from the finest, attention is 1x1 convolutions."""
    up = "\n".join(
        rf"up_blocks\.{i}\.{ours} up.{levels - 1 - i}.{theirs}"
        for i in range(levels)
        for ours, theirs in (("resnets", "block"), (r"upsamplers\.0", "upsample"))
    )
    result = renamed(weights, up)
    result = renamed(
        result,
        r"""
        down_blocks\.(\d+)\.resnets             down.\1.block
        down_blocks\.(\d+)\.downsamplers\.0     down.\1.downsample
        mid_block\.resnets\.0                   mid.block_1
        mid_block\.resnets\.1                   mid.block_2
        mid_block\.attentions\.0\.group_norm    mid.attn_1.norm
        mid_block\.attentions\.0\.to_([qkv])    mid.attn_1.\1
        mid_block\.attentions\.0\.to_out\.0     mid.attn_1.proj_out
        conv_shortcut                           nin_shortcut
        conv_norm_out                           norm_out
        """,
    )
    return {
        name: tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in result.items()
    }


def clip(weights: Weights) -> dict[str, Tensor]:
    """transformers' own names as they were when LDM was published."""
    return {
        "text_model." + name.removeprefix("text_model."): each for name, each in weights.items()
    }


def open_clip(weights: Weights) -> dict[str, Tensor]:
    """OpenCLIP's text tower: queries, keys and values in one, the projection transposed."""
    result = renamed(
        weights,
        r"""
        ^text_model\.                           ''
        ^embeddings\.token_embedding\.weight    token_embedding.weight
        ^embeddings\.position_embedding\.weight positional_embedding
        ^final_layer_norm                       ln_final
        ^encoder\.layers\.(\d+)\.               transformer.resblocks.\1.
        \.layer_norm(\d)\.                      .ln_\1.
        \.mlp\.fc1\.                            .mlp.c_fc.
        \.mlp\.fc2\.                            .mlp.c_proj.
        \.self_attn\.                           .attn.
        """,
    )
    result["text_projection"] = result.pop("text_projection.weight").T
    result = fused(result, "q_proj k_proj v_proj", "in_proj")
    return renamed(result, r"in_proj\.(weight|bias) in_proj_\1")


IMAGE_QKV, TEXT_QKV = (
    "attn.to_q attn.to_k attn.to_v",
    "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
)
ENDS = r"""
    ^x_embedder                 img_in
    ^context_embedder           txt_in
    ^norm_out\.linear           final_layer.adaLN_modulation.1
    ^proj_out                   final_layer.linear
"""
DOUBLE = r"""
    ^transformer_blocks                     double_blocks
    \.attn\.norm_added_(q|k)\.weight        .txt_attn.norm.\1_norm.scale
    \.attn\.norm_(q|k)\.weight              .img_attn.norm.\1_norm.scale
    \.norm\.q_norm                          .norm.query_norm
    \.norm\.k_norm                          .norm.key_norm
    \.attn\.to_out\.0                       .img_attn.proj
    \.attn\.to_add_out                      .txt_attn.proj
"""


def flux(weights: Weights) -> dict[str, Tensor]:
    """FLUX.1: attention fused, in single blocks with the first layer of the MLP."""
    result = fused(weights, TEXT_QKV, "txt_attn.qkv")
    result = fused(fused(result, f"{IMAGE_QKV} proj_mlp", "linear1"), IMAGE_QKV, "img_attn.qkv")
    single = r"""
        ^single_transformer_blocks\.(\d+)\.proj_out                     single_blocks.\1.linear2
        ^single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)\.weight     single_blocks.\1.norm.\2_norm.scale
        ^single_transformer_blocks\.(\d+)\.norm\.linear                 single_blocks.\1.modulation.lin
        ^single_transformer_blocks                                      single_blocks
        \.norm1\.linear                                 .img_mod.lin
        \.norm1_context\.linear                         .txt_mod.lin
        \.ff\.net\.0\.proj                              .img_mlp.0
        \.ff\.net\.2                                    .img_mlp.2
        \.ff_context\.net\.0\.proj                      .txt_mlp.0
        \.ff_context\.net\.2                            .txt_mlp.2
        ^time_text_embed\.timestep_embedder\.linear_1   time_in.in_layer
        ^time_text_embed\.timestep_embedder\.linear_2   time_in.out_layer
        ^time_text_embed\.guidance_embedder\.linear_1   guidance_in.in_layer
        ^time_text_embed\.guidance_embedder\.linear_2   guidance_in.out_layer
        ^time_text_embed\.text_embedder\.linear_1       vector_in.in_layer
        ^time_text_embed\.text_embedder\.linear_2       vector_in.out_layer
    """  # noqa: E501
    return swapped(renamed(result, single + DOUBLE + ENDS), "final_layer.adaLN_modulation.1")
