"""An open_clip weight file (HPSv2.1, LAION, DataComp, ...) as a transformers CLIPModel.

Names are mapped and fused projections split. Layout: github.com/mlfoundations/open_clip, class
CLIP. Sizes come from the tensors' shapes. Head width and activation do not: an
`open_clip_config.json` beside the file gives both. Without one, heads have the published widths
(64; 80, 88, 104, 112 in the vision towers of ViT-H, g, bigG, e), and the recipe's `activation`
sets the activation, except for H, g, bigG and e, which use gelu as LAION's and HPSv2's weights do.
Refused by name: towers of timm or transformers, ResNets, CoCa, CLIPA.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ..types import DirectAlignError
from . import weights as files
from .common import read_json

KIND = "CLIP of open_clip"
VISION_BLOCKS, TEXT_BLOCKS = "visual.transformer.resblocks", "transformer.resblocks"
TOWERS = {"vision_model": VISION_BLOCKS, "text_model": TEXT_BLOCKS}
BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
FUSED = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
"""Thirds of attn.in_proj."""
OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
UNUSED = ("attn_mask", "logit_bias", "input_resolution", "context_length", "vocab_size")
"""Entries of old files that are not weights."""


def load(file: Path, key: str, activation: str | None = None) -> CLIPModel:
    """The CLIPModel of an open_clip file, float32, on the CPU; errors as `describe`."""
    weights = _bare(files.read_weights(file, f"{key}.path"))
    model = _described(files.shapes_of(weights), file, key, activation)
    own = {name: _converted(name, weights[_source(name)]) for name in model.state_dict()}
    return files.build(CLIPModel, model.config, own)


def describe(file: Path, key: str, activation: str | None = None) -> CLIPConfig:
    """The config of an open_clip file's model, without reading values.

    Raises DirectAlignError, naming `key` and the file: cut short, pickled objects, another
    architecture, a tensor that is missing, unknown or misshapen, an activation or a head width that
    cannot be known.
    """
    return _described(_bare(files.read_shapes(file, f"{key}.path")), file, key, activation).config


def _bare(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without the `text.` prefix of a separate text module, and without unused entries."""
    found = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name not in UNUSED}


def _described(shapes: files.Shapes, file: Path, key: str, activation: str | None) -> CLIPModel:
    """The model of a file on the meta device."""
    with torch.device("meta"):
        model = CLIPModel(clip_config(shapes, file, key, activation))
    wanted = dict[str, tuple[int, ...]]()
    for name, shape in files.shapes_of(model.state_dict()).items():
        fused = shape if _third(name) is None else (3 * shape[0], *shape[1:])
        wanted[_source(name)] = shape[::-1] if name in TRANSPOSED else fused
    # Some files store logit_scale as a list of one number.
    found = {name: () if name == "logit_scale" else shape for name, shape in shapes.items()}
    files.check_tensors(wanted, found, file, f"{key}.path", KIND)
    return model


def _converted(name: str, tensor: Tensor) -> Tensor:
    """The tensor that transformers calls `name`, from its source in the file."""
    third = _third(name)
    if third is not None:
        return tensor.chunk(3)[third].contiguous()
    if name == "logit_scale":
        return tensor.reshape(())
    return tensor.T.contiguous() if name in TRANSPOSED else tensor


def _third(name: str) -> int | None:
    return next((third for part, third in FUSED.items() if f".{part}." in name), None)


def _source(name: str) -> str:
    """Name in an open_clip file of the tensor that transformers calls `name`."""
    tower, layer, rest = name.partition(".encoder.layers.")
    if not layer:
        stem, _, end = name.rpartition(".")
        return OUTSIDE.get(name) or f"{OUTSIDE[stem]}.{end}"
    number, _, rest = rest.partition(".")
    part, _, end = rest.rpartition(".")
    inside = f"attn.in_proj_{end}" if part in FUSED else f"{BLOCK[part]}.{end}"
    return f"{TOWERS[tower]}.{number}.{inside}"


GELU_ONLY = (1280, 1408, 1664, 1792)
"""Widths published only with gelu, unless a config sets another (as DFN's and MetaCLIP's)."""
VISION_HEADS = dict.fromkeys((384, 512, 768, 896, 1024), 64)
VISION_HEADS |= dict(zip(GELU_ONLY, (80, 88, 104, 112), strict=True))
"""Head width by width of the vision tower, for all models that open_clip publishes."""
TEXT_HEAD = 64
"""Head width of every text tower."""
VOCABULARY = 49_408

OTHER_FILES = {
    "visual.trunk.": "a vision tower of timm: take the model's transformers folder (reward.name: "
    "siglip for a SigLIP)",
    "visual.layer1.": "a ResNet CLIP, which transformers does not have: take a ViT",
    "text_decoder.": "a CoCa, which transformers does not have: take a plain CLIP",
    "text.transformer.e": "a text tower of transformers: take a CLIP with its own",
    "text_model.": "a transformers model: give its folder, with config.json",
    "vision_model.": "a transformers model: give its folder, with config.json",
}
"""Refused contents, by a prefix of tensor names."""

CONFIG = "open_clip_config.json"
PLAIN = {
    *("layers", "width", "patch_size", "image_size", "head_width", "heads", "mlp_ratio"),
    *("patch_dropout", "context_length", "vocab_size"),
}
"""Tower settings that CLIPModel supports; `pool_type` only as in POOLING."""
POOLING = {"vision_cfg": "tok", "text_cfg": "argmax"}


def clip_config(
    shapes: files.Shapes, file: Path, key: str, activation: str | None = None
) -> CLIPConfig:
    """The config of a file's model, from its shapes, the config beside it, else the rules above."""
    given = _read_config(file, key)
    _check_kind(shapes, file, key)
    with files.sizes_read(file, f"{key}.path", KIND):
        (vision, text), width = _towers(shapes), int(shapes["text_projection"][-1])
    heads = _heads(given, vision, text, file, key)
    act = _activation(given, vision["hidden_size"], activation, file, key)
    for tower, count in zip((vision, text), heads, strict=True):
        tower.update(num_attention_heads=count, hidden_act=act, projection_dim=width)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)


def _check_kind(shapes: files.Shapes, file: Path, key: str) -> None:
    for start, what in OTHER_FILES.items():
        if any(name.startswith((start, start.removeprefix("text."))) for name in shapes):
            raise DirectAlignError(f"{key}.path: {file}: holds {what}")
    if "visual.conv1.weight" not in shapes:
        raise DirectAlignError(
            f"{key}.path: {file}: holds no CLIP of open_clip (no visual.conv1.weight); give such a "
            "file or a transformers CLIPModel folder"
        )


def _towers(shapes: files.Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of the vision tower and of the text tower."""
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    vision = {"image_size": side * patch, "patch_size": patch}
    vision |= _tower(shapes, VISION_BLOCKS, width)
    vocabulary, width = shapes["token_embedding.weight"]
    # With end-of-text id 2 transformers pools at the highest id, as open_clip does.
    return vision, _tower(shapes, TEXT_BLOCKS, width) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": shapes["positional_embedding"][0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _tower(shapes: files.Shapes, blocks: str, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": files.count_layers(shapes, f"{blocks}."),
        "intermediate_size": shapes[f"{blocks}.0.mlp.c_fc.weight"][0],
    }


def _heads(
    given: Mapping[str, Any] | None,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    file: Path,
    key: str,
) -> tuple[int, int]:
    """Numbers of heads of both towers: of the config `given`, else those of published widths."""
    widths, remedy = (vision["hidden_size"], text["hidden_size"]), f"put the checkpoint's {CONFIG}"
    if given is not None:
        towers = given["vision_cfg"], given["text_cfg"]
        if (towers[0].get("width", 768), towers[1].get("width", 512)) != widths:
            raise DirectAlignError(
                f"{key}.path: {file.parent / CONFIG} is of another model than {file.name} (other "
                "widths); take the one of these weights"
            )
        return widths[0] // towers[0].get("head_width", 64), towers[1].get("heads", 8)
    if widths[0] not in VISION_HEADS or widths[1] % TEXT_HEAD:
        raise DirectAlignError(
            f"{key}.path: {file}: the number of heads of towers {widths[0]} and {widths[1]} wide "
            f"is not known: {remedy} beside it"
        )
    if text["vocab_size"] != VOCABULARY:
        raise DirectAlignError(
            f"{key}.path: {file}: its text tower has a vocabulary of its own "
            f"({text['vocab_size']} tokens): {remedy} beside it"
        )
    return widths[0] // VISION_HEADS[widths[0]], widths[1] // TEXT_HEAD


def _activation(
    given: Mapping[str, Any] | None, width: int, activation: str | None, file: Path, key: str
) -> str:
    if given is not None:
        configured = "quick_gelu" if given.get("quick_gelu", False) else "gelu"
        if activation not in (None, configured):
            raise DirectAlignError(
                f"{key}.activation: {activation}, but {file.parent / CONFIG} sets {configured}; "
                "remove activation"
            )
        return configured
    if activation is None and width not in GELU_ONLY:
        raise DirectAlignError(
            f"{key}.activation: missing, and {file} does not contain it: set quick_gelu for the "
            "weights of OpenAI, DFN and MetaCLIP, gelu for LAION's and DataComp's, or put the "
            f"checkpoint's {CONFIG} beside it"
        )
    return activation or "gelu"


def _read_config(file: Path, key: str) -> dict[str, Any] | None:
    """`model_cfg` of the config beside a file, None without one.

    Raises DirectAlignError for settings that CLIPModel does not support.
    """
    found = file.parent / CONFIG
    if not found.exists():
        return None
    read = read_json(found, f"{key}.path")
    try:
        model = read["model_cfg"]
        towers = {name: dict(model[name]) for name in POOLING}
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(
            f"{key}.path: {found}: not the config of an open_clip model ({error}); copy it again"
        ) from error
    for name, tower in towers.items():
        usual = ("pool_type", POOLING[name])
        for setting, value in tower.items():
            if value and setting not in PLAIN and (setting, value) != usual:
                raise DirectAlignError(
                    f"{key}.path: {found}: {name} sets {setting}, which a transformers CLIPModel "
                    "does not have; take a plain ViT"
                )
    return model
