"""The way back from diffusers' names to the layouts in which makers publish their weights, written
from those layouts, not from diffusers' converters.

Each function takes the state dict of a diffusers or transformers model and gives the tensors of the
original file, without the prefix of an all-in-one file. Used to prove that such files are read into
the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def renamed(weights: Weights, *rules: tuple[str, str]) -> dict[str, Tensor]:
    """Every name under each rule (regular expression, replacement) in turn."""
    result = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def prefixed(prefix: str, weights: Weights) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def swapped(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The last modulation layer says scale before shift in diffusers, shift before scale in the
    originals.
    """
    return weights | {
        key: torch.cat(tensor.chunk(2)[::-1])
        for key, tensor in weights.items()
        if key.rpartition(".")[0] == name
    }


def fused(
    weights: Weights, separate: tuple[str, ...], together: Callable[[str], str]
) -> dict[str, Tensor]:
    """Wherever all layers `separate` are, they become one, stacked in that order, named by
    `together` from the path before them.
    """
    result = dict(weights)
    for key in weights:
        for kind in (".weight", ".bias"):
            path = key.removesuffix(f".{separate[0]}{kind}")
            names = [f"{path}.{name}{kind}" for name in separate]
            if path != key and all(name in weights for name in names):
                result[together(path) + kind] = torch.cat([result.pop(name) for name in names])
    return result


def ldm_unet(weights: Weights, layers_per_block: int) -> dict[str, Tensor]:
    """A UNet of Stable Diffusion: input_blocks, middle_block, output_blocks, counted through all
    levels.
    """
    n = layers_per_block + 1
    attentive = {
        name.split(".")[1] for name in weights if re.match(r"up_blocks\.\d+\.attentions", name)
    }

    def place(name: str) -> str:
        kind, level, what, index, *rest = name.split(".")
        at, rest = int(level) * n + int(index), ".".join(rest)
        match kind, what:
            case "down_blocks", "downsamplers":
                return f"input_blocks.{(int(level) + 1) * n}.0.op.{rest.removeprefix('conv.')}"
            case "down_blocks", _:
                return f"input_blocks.{at + 1}.{0 if what == 'resnets' else 1}.{rest}"
            case _, "upsamplers":
                return f"output_blocks.{int(level) * n + n - 1}.{2 if level in attentive else 1}.{rest}"  # noqa: E501
            case _:
                return f"output_blocks.{at}.{0 if what == 'resnets' else 1}.{rest}"

    placed = {
        place(name) if name.startswith(("down_blocks", "up_blocks")) else name: tensor
        for name, tensor in weights.items()
    }
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
    }
    in_resnet = r"^((?:in|out)put_blocks\.\d+\.0|middle_block\.[02])"
    embedding = {"time_embedding": "time_embed", "add_embedding": "label_emb.0"}
    return renamed(
        placed,
        (r"^mid_block\.resnets\.0", "middle_block.0"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^mid_block\.resnets\.1", "middle_block.2"),
        *(
            (rf"{in_resnet}\.{ours}\.", rf"\1.{theirs}.")
            for ours, theirs in {**resnet, "conv_shortcut": "skip_connection"}.items()
        ),
        *(
            (rf"^{ours}\.linear_{k}", f"{theirs}.{2 * (k - 1)}")
            for ours, theirs in embedding.items()
            for k in (1, 2)
        ),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
    )


def ldm_vae(weights: Weights, levels: int) -> dict[str, Tensor]:
    """The autoencoder: the decoder's levels counted from the finest, attention in the middle by 1x1
    convolutions.
    """
    attention = (
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        (r"to_out\.0", "proj_out"),
    )
    result = renamed(
        weights,
        (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
        *((rf"up_blocks\.{i}\.resnets\.", f"up.{levels - 1 - i}.block.") for i in range(levels)),
        *(
            (rf"up_blocks\.{i}\.upsamplers\.0\.", f"up.{levels - 1 - i}.upsample.")
            for i in range(levels)
        ),
        *((rf"mid_block\.resnets\.{i}\.", f"mid.block_{i + 1}.") for i in range(2)),
        *(
            (rf"mid_block\.attentions\.0\.{ours}\.", f"mid.attn_1.{theirs}.")
            for ours, theirs in attention
        ),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    )
    return {
        name: tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in result.items()
    }


def clip(weights: Weights) -> dict[str, Tensor]:
    """transformers' own names as they were when LDM was published."""
    return {
        "text_model." + name.removeprefix("text_model."): tensor for name, tensor in weights.items()
    }


def open_clip(weights: Weights) -> dict[str, Tensor]:
    """OpenCLIP's text tower: queries, keys and values in one, the projection transposed."""
    result = renamed(
        weights,
        (r"^text_model\.", ""),
        (r"^embeddings\.token_embedding\.weight", "token_embedding.weight"),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^final_layer_norm", "ln_final"),
        (r"^encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
        (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"\.self_attn\.", ".attn."),
    )
    result["text_projection"] = result.pop("text_projection.weight").T
    result = fused(result, ("q_proj", "k_proj", "v_proj"), lambda path: f"{path}.in_proj")
    return renamed(result, (r"in_proj\.(weight|bias)", r"in_proj_\1"))


def flux(weights: Weights) -> dict[str, Tensor]:
    """Black Forest Labs' FLUX.1: double and single blocks, attention fused, in single blocks with
    the first layer of the MLP.
    """
    result = fused(
        dict(weights),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        lambda path: f"{path}.txt_attn.qkv",
    )
    result = fused(
        result, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), lambda path: f"{path}.linear1"
    )
    result = fused(
        result, ("attn.to_q", "attn.to_k", "attn.to_v"), lambda path: f"{path}.img_attn.qkv"
    )
    result = renamed(
        result,
        (r"^single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
        (
            r"^single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)\.weight",
            r"single_blocks.\1.norm.\2_norm.scale",
        ),
        (r"^single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
        (r"^single_transformer_blocks", "single_blocks"),
        (r"^transformer_blocks", "double_blocks"),
        (r"\.norm1\.linear", ".img_mod.lin"),
        (r"\.norm1_context\.linear", ".txt_mod.lin"),
        (r"\.attn\.norm_added_(q|k)\.weight", r".txt_attn.norm.\1_norm.scale"),
        (r"\.attn\.norm_(q|k)\.weight", r".img_attn.norm.\1_norm.scale"),
        (r"\.norm\.q_norm", ".norm.query_norm"),
        (r"\.norm\.k_norm", ".norm.key_norm"),
        (r"\.ff\.net\.0\.proj", ".img_mlp.0"),
        (r"\.ff\.net\.2", ".img_mlp.2"),
        (r"\.ff_context\.net\.0\.proj", ".txt_mlp.0"),
        (r"\.ff_context\.net\.2", ".txt_mlp.2"),
        (r"\.attn\.to_out\.0", ".img_attn.proj"),
        (r"\.attn\.to_add_out", ".txt_attn.proj"),
        (r"^time_text_embed\.(time)step_embedder\.linear_1", r"\1_in.in_layer"),
        (r"^time_text_embed\.(time)step_embedder\.linear_2", r"\1_in.out_layer"),
        (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"^context_embedder", "txt_in"),
        (r"^x_embedder", "img_in"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
    )
    return swapped(result, "final_layer.adaLN_modulation.1")


def sd3(weights: Weights) -> dict[str, Tensor]:
    """Stability's SD3: joint blocks of an image and a context half; the context half of the last
    one says shift before scale.
    """
    result = fused(
        dict(weights),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        lambda path: f"{path}.context_block.attn.qkv",
    )
    for attention in ("attn", "attn2"):
        separate = tuple(f"{attention}.to_{x}" for x in "qkv")
        result = fused(result, separate, lambda path, name=attention: f"{path}.x_block.{name}.qkv")
    last = max(
        int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks.")
    )
    result = renamed(
        result,
        (r"^transformer_blocks", "joint_blocks"),
        (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
        (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
        (r"\.attn\.norm_added_(q|k)\.", r".context_block.attn.ln_\1."),
        (r"\.(attn2?)\.norm_(q|k)\.", r".x_block.\1.ln_\2."),
        (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
        (r"\.attn\.to_add_out", ".context_block.attn.proj"),
        (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"),
        (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
        (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"),
        (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
        (r"^pos_embed\.pos_embed", "pos_embed"),
        (r"^pos_embed\.proj", "x_embedder.proj"),
        *(
            (rf"^time_text_embed\.timestep_embedder\.linear_{k}", f"t_embedder.mlp.{2 * (k - 1)}")
            for k in (1, 2)
        ),
        *(
            (rf"^time_text_embed\.text_embedder\.linear_{k}", f"y_embedder.mlp.{2 * (k - 1)}")
            for k in (1, 2)
        ),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
    )
    return swapped(
        swapped(result, "final_layer.adaLN_modulation.1"),
        f"joint_blocks.{last}.context_block.adaLN_modulation.1",
    )


def z_image(weights: Weights) -> dict[str, Tensor]:
    """Z-Image as published for ComfyUI: fused attention, one patch size, a norm that nothing
    uses."""
    result = renamed(
        fused(dict(weights), ("to_q", "to_k", "to_v"), lambda path: f"{path}.qkv"),
        (r"^all_(final_layer|x_embedder)\.2-1\.", r"\1."),
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.attention\.norm_(q|k)\.", r".attention.\1_norm."),
    )
    return result | {"norm_final.weight": torch.ones(4)}


def flux2(weights: Weights) -> dict[str, Tensor]:
    """FLUX.2: modulations shared by all blocks, attention fused in double blocks."""
    result = fused(
        dict(weights),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        lambda path: f"{path}.txt_attn.qkv",
    )
    result = fused(
        result, ("attn.to_q", "attn.to_k", "attn.to_v"), lambda path: f"{path}.img_attn.qkv"
    )
    result = renamed(
        result,
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
        (
            r"^single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)\.weight",
            r"single_blocks.\1.norm.\2_norm.scale",
        ),
        (r"^transformer_blocks", "double_blocks"),
        (r"\.attn\.norm_added_(q|k)\.weight", r".txt_attn.norm.\1_norm.scale"),
        (r"\.attn\.norm_(q|k)\.weight", r".img_attn.norm.\1_norm.scale"),
        (r"\.norm\.q_norm", ".norm.query_norm"),
        (r"\.norm\.k_norm", ".norm.key_norm"),
        (r"\.ff\.linear_in", ".img_mlp.0"),
        (r"\.ff\.linear_out", ".img_mlp.2"),
        (r"\.ff_context\.linear_in", ".txt_mlp.0"),
        (r"\.ff_context\.linear_out", ".txt_mlp.2"),
        (r"\.attn\.to_out\.0", ".img_attn.proj"),
        (r"\.attn\.to_add_out", ".txt_attn.proj"),
        (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"_modulation(_img|_txt|)\.linear", r"_modulation\1.lin"),
        (r"^context_embedder", "txt_in"),
        (r"^x_embedder", "img_in"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
    )
    return swapped(result, "final_layer.adaLN_modulation.1")
