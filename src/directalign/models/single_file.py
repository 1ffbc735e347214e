"""Checkpoints in one file in their published layout, identified by tensor names.

Files of Stable Diffusion 1, 2 and XL have UNet, VAE and CLIP (LDM layout); those of FLUX, SD3 and
the other transformers the denoiser, with or without the VAE and ComfyUI's prefix
`model.diffusion_model.`. Configs, tokenizers, scheduler and missing parts are read from a diffusers
folder. Not read: weights in fewer bits with scales (scaled fp8, nf4, GGUF), and the text encoders
inside SD3 and FLUX files. The conversion is that of diffusers.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers.loaders import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from torch import Tensor, nn

from ..io.pretrained import readable
from ..io.tensors import check_weights, opened, tensor_shapes
from ..types import DirectAlignError
from .weight_files import read_json

PREFIX = "model.diffusion_model."
"""Prefix of the denoiser's tensors in LDM's and ComfyUI's files."""

PREFIXES = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""Prefixes of the other parts' tensors."""
OTHERS = (*(prefix for prefixes in PREFIXES.values() for prefix in prefixes), "text_encoders.")

VAE_TENSORS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
SCALES = (".scale_weight", ".weight_scale", ".absmax", ".quant_map", ".comfy_quant", "scaled_fp8")
"""Suffixes of the scales of quantized weights."""
UNUSED = ("norm_final.weight",)
"""Suffixes in files of Z-Image and Lumina 2 that no network has."""
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors of SD files by which ComfyUI and Forge know what the network predicts."""


@dataclass(frozen=True)
class Layout:
    """An architecture's files: the denoiser's class, names of tensors that identify it (`marks`,
    one is enough), and other parts that they may have (`brings`)."""

    name: str
    class_name: str
    marks: tuple[str, ...]
    brings: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The denoiser's part of the pipeline."""
        return "unet" if self.class_name.startswith("UNet") else "transformer"


LAYOUTS = (
    Layout(
        "FLUX.2",
        "Flux2Transformer2DModel",
        ("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight"),
    ),
    Layout("Chroma", "ChromaTransformer2DModel", ("distilled_guidance_layer.in_proj.bias",)),
    Layout(
        "FLUX.1",
        "FluxTransformer2DModel",
        (
            "double_blocks.0.img_attn.norm.key_norm.scale",
            "single_transformer_blocks.0.proj_mlp.weight",
        ),
        ("vae",),
    ),
    Layout(
        "SD3",
        "SD3Transformer2DModel",
        ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "pos_embed.pos_embed"),
        ("vae",),
    ),
    Layout("Z-Image", "ZImageTransformer2DModel", ("layers.0.adaLN_modulation.0.weight",)),
    Layout(
        "Lumina 2",
        "Lumina2Transformer2DModel",
        ("layers.0.adaLN_modulation.1.weight", "time_caption_embed.caption_embedder.0.weight"),
    ),
    Layout("Qwen-Image", "QwenImageTransformer2DModel", ("transformer_blocks.0.img_mod.1.weight",)),
    Layout(
        "Stable Diffusion XL",
        "UNet2DConditionModel",
        ("label_emb.0.0.weight", "add_embedding.linear_1.weight"),
        tuple(PREFIXES),
    ),
    Layout(
        "Stable Diffusion 1 or 2",
        "UNet2DConditionModel",
        ("input_blocks.0.0.weight", "mid_block.resnets.0.norm1.weight"),
        ("vae", "text_encoder"),
    ),
)
"""The order matters: FLUX.2 and Chroma have the marks of FLUX.1 too, XL those of SD 1."""

OTHER_FILES = {
    "a LoRA, which adds to a model": (".lora_down.weight", ".lora_A.weight", ".default.weight"),
    "only a VAE": ("decoder.conv_in.weight", "decoder.conv1.weight"),
    "only a text encoder": ("token_embedding.weight", "shared.weight", "embed_tokens.weight"),
}
"""Other kinds of files, by a suffix of one of their tensors' names."""


@dataclass(frozen=True)
class Contents:
    """A file's layout, and for each part the shapes of its tensors by their names in the file."""

    file: FilePath
    layout: Layout
    parts: Mapping[str, Mapping[str, tuple[int, ...]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the scheduler that marks in the file call for."""


def contents(file: FilePath) -> Contents:
    """Read the header of a single-file checkpoint.

    Raises DirectAlignError for a truncated or quantized file, or another kind of model.
    """
    shapes = tensor_shapes(file)
    settings = _marked({name for name in (V_PREDICTION, ZERO_SNR) if shapes.pop(name, None)}, file)
    scaled = next((name for name in shapes if name.endswith(SCALES)), None)
    if scaled is not None:
        raise DirectAlignError(
            f"{file}: its weights are quantised ({scaled}): take the file in bf16 or fp16, "
            "and set model.quantization for fewer bits"
        )
    denoiser = {name: shape for name, shape in shapes.items() if name.startswith(PREFIX)} or shapes
    layout = _layout(file, denoiser)
    parts = {
        layout.part: {
            name: shape
            for name, shape in denoiser.items()
            if not name.endswith(UNUSED) and not name.startswith(OTHERS)
        }
    }
    for part in layout.brings:
        found = {name: shape for name, shape in shapes.items() if name.startswith(PREFIXES[part])}
        parts |= {part: found} if found else {}
    return Contents(file, layout, parts, settings if layout.part == "unet" else {})


def _marked(marks: set[str], file: FilePath) -> dict[str, Any]:
    with opened(file) as content:
        named = (content.metadata() or {}).get("modelspec.prediction_type", "").lower()
    named = (
        "v" if V_PREDICTION in marks or named in ("v", "v_prediction", "v-prediction") else named
    )
    kinds = {"v": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
    settings = {"prediction_type": kinds[named]} if named in kinds else {}
    return settings | ({"rescale_betas_zero_snr": True} if ZERO_SNR in marks else {})


def check(held: Contents, part: str, part_class: Any, folder: FilePath) -> None:
    """Check a part's class and number of weights against the folder; nothing is loaded."""
    if part == held.layout.part and part_class.__name__ != held.layout.class_name:
        raise DirectAlignError(
            f"{held.file}: holds {held.layout.name}, and {folder} a {part_class.__name__}: "
            "give model.components and model.architecture to match"
        )
    if part == held.layout.part and held.settings:
        scheduler = folder / "scheduler" / "scheduler_config.json"
        given = {"prediction_type": "epsilon", **read_json(scheduler)}
        for key, wanted in held.settings.items():
            if given.get(key, False) != wanted:
                raise DirectAlignError(
                    f"{held.file}: is marked as {key}: {wanted}, and {scheduler} has "
                    f"{given.get(key, False)}: give the model.components that it was trained from, "
                    "or a copy with this setting"
                )
    if part in ("text_encoder", "text_encoder_2"):
        return  # the file may leave out tensors that a config of transformers describes
    if not issubclass(part_class, FromOriginalModelMixin):
        raise DirectAlignError(
            f"{held.file}: this version of diffusers reads no single file of a "
            f"{part_class.__name__}: give a diffusers folder in model.path"
        )
    # old VAE files have tensors of their training too
    inference = tuple(prefix + kind for prefix in PREFIXES["vae"] for kind in VAE_TENSORS)
    read = inference if part == "vae" else ""
    shapes = [shape for name, shape in held.parts[part].items() if name.startswith(read)]
    stored = sum(math.prod(shape) for shape in shapes)
    kind: Any = part_class
    with torch.device("meta"):
        settings = kind.load_config(folder / part, local_files_only=True)
        described = kind.from_config(settings).state_dict()
    wanted = sum(tensor.numel() for tensor in described.values())
    if stored != wanted:
        what = f"{held.layout.name}, with {stored:,} weights in its {part}"
        raise DirectAlignError(
            f"{held.file}: holds {what}, and {folder / part} describes {wanted:,}: "
            "give the model.components that it was trained from"
        )


def load(
    held: Contents, part: str, part_class: Any, folder: FilePath, dtype: torch.dtype
) -> nn.Module:
    """A part from the file with the config in `folder`, frozen."""
    given: dict[str, Any] = {"config": str(folder), "subfolder": part, "torch_dtype": dtype}
    if part in ("text_encoder", "text_encoder_2"):
        make = partial(create_diffusers_clip_model_from_ldm, part_class)
    else:
        make = part_class.from_single_file
    with readable(held.file, part_class):
        model = make(_tensors(held, part, dtype), **given, local_files_only=True)
    lacking = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if lacking:
        raise DirectAlignError(
            f"{held.file}: lacks {len(lacking)} tensors of the {part} in {folder} ({lacking[0]}, "
            "...): give the model.components it belongs to"
        )
    return model.requires_grad_(False).eval()


def _layout(file: FilePath, names: Iterable[str]) -> Layout:
    bare = {name.removeprefix(PREFIX) for name in names}
    for layout in LAYOUTS:
        if not bare.isdisjoint(layout.marks):
            return layout
    kind = next(
        (kind for kind, ends in OTHER_FILES.items() if any(name.endswith(ends) for name in bare)),
        "no architecture that is known here",
    )
    raise DirectAlignError(
        f"{file}: holds {kind} ({min(bare, default='no tensor')}): "
        "model.path takes a whole text-to-image model or its denoiser"
    )


def _tensors(held: Contents, part: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The part's tensors in `dtype`, by the names that diffusers converts.

    It expects the prefix for UNets in LDM layout, and no prefix for the other denoisers.
    """
    with opened(held.file) as content:
        tensors = {name: content.get_tensor(name) for name in held.parts[part]}
    check_weights(tensors, held.file)
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    if part != held.layout.part:
        return tensors
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    prefix = PREFIX if "input_blocks.0.0.weight" in bare else ""
    return {prefix + name: tensor for name, tensor in bare.items()}
