"""Write the whole model as one file in its makers' layout: SD 1, SDXL, FLUX.1.

Files of Stable Diffusion hold UNet, VAE and text encoders; those of FLUX.1 the transformer, as
Black Forest Labs publish it. The layouts are those of `models.original_layouts`.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..models import single_file
from ..models.checkpoint_source import Source, open_source
from ..models.components import check_parts
from ..models.original_layouts import clip, flux, ldm_unet, ldm_vae, open_clip, prefixed
from ..models.weight_files import read_json
from ..types import DirectAlignError
from .finished_run import BaseModelInfo, FinishedRun
from .lora_formats import file_metadata
from .weights import DtypeName, network_of, require_finite

UNET, VAE = single_file.PREFIX, "first_stage_model."
PARTS = {
    "sd": {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.transformer."},
    "sdxl": {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "flux": {"transformer": ""},
}
"""By model.architecture: the parts in the file, and what is before the names of their tensors."""
FLUX_WIDTH, SD2_TEXT_WIDTH = 3072, 1024
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""Names of diffusers and of the model specification."""
INSTEAD = "give --format folder (for a LoRA with --merge)"
"""Every model can be written so."""


def check_checkpoint(finished: FinishedRun) -> None:
    """Raise DirectAlignError unless the run's model can be written in one file."""
    architecture = finished.run.model.architecture
    if architecture not in PARTS:
        raise DirectAlignError(
            f"--format checkpoint: writes {', '.join(PARTS)}, and model.architecture is "
            f"{architecture}; {INSTEAD}"
        )
    source = open_source(finished.run.model, weights=False)
    file = source.folder / finished.part / "config.json"
    given = read_json(file)
    heads, size = given.get("num_attention_heads", 24), given.get("attention_head_dim", 128)
    if architecture == "flux" and (width := heads * size) != FLUX_WIDTH:
        raise DirectAlignError(
            f"--format checkpoint: diffusers and ComfyUI read FLUX.1 from one file only at its "
            f"width of {FLUX_WIDTH}, and that of {file} is {width}; {INSTEAD}"
        )
    if architecture == "sd" and given.get("cross_attention_dim") == SD2_TEXT_WIDTH:
        raise DirectAlignError(
            f"--format checkpoint: {file} is a Stable Diffusion 2, whose text encoder lacks a "
            f"layer of its makers' file; {INSTEAD}"
        )
    if architecture != "flux" and not isinstance(given.get("layers_per_block", 2), int):
        raise DirectAlignError(
            f"--format checkpoint: {file} has blocks of different lengths; {INSTEAD}"
        )


def write_checkpoint(
    finished: FinishedRun, target: Path, base: BaseModelInfo, dtype: DtypeName
) -> None:
    """Write the model with the run's weights, a LoRA merged, as one file into `target`.

    All of it is in memory, in `dtype`. Raises: DirectAlignError for a missing or different base
    model, and for a UNet that readers would take for another one.
    """
    source = open_source(finished.run.model)
    parts = PARTS[finished.run.model.architecture]
    tensors: dict[str, Tensor] = {}
    prediction = None
    for part, prefix in parts.items():
        network = network_of(finished, source, part, getattr(torch, dtype))
        tensors |= prefixed(prefix, _original(part, network))
    if finished.part == "unet":
        marks, prediction = _scheduler_marks(source)
        tensors |= marks
    require_finite(tensors, dtype)
    text_width = read_json(source.folder / finished.part / "config.json").get("cross_attention_dim")
    metadata = file_metadata(finished, base, "checkpoint", text_width or 0, prediction)
    file = target / f"{finished.slug}.safetensors"
    save_file({name: each.contiguous() for name, each in tensors.items()}, file, metadata=metadata)
    _check_read_back(finished, source, file, tensors)


def _original(part: str, network: Any) -> dict[str, Tensor]:
    """The tensors of a part under the names of its makers."""
    weights = network.state_dict()
    if part == "transformer":
        return flux(weights)
    if part == "unet":
        return ldm_unet(weights, network.config["layers_per_block"])
    if part == "vae":
        return ldm_vae(weights, len(network.config["block_out_channels"]))
    return clip(weights) if part == "text_encoder" else open_clip(weights)


def _scheduler_marks(source: Source) -> tuple[dict[str, Tensor], str | None]:
    """Empty tensors by which ComfyUI and Forge know the prediction, and its name for the header."""
    given = read_json(source.folder / "scheduler" / "scheduler_config.json")
    kind = given.get("prediction_type", "epsilon")
    wanted = {
        single_file.V_PREDICTION: kind == "v_prediction",
        single_file.ZERO_SNR: bool(given.get("rescale_betas_zero_snr")),
    }
    marks = {name: torch.empty(0) for name, is_set in wanted.items() if is_set}
    return marks, PREDICTIONS.get(kind)


def _check_read_back(
    finished: FinishedRun, source: Source, file: Path, tensors: dict[str, Tensor]
) -> None:
    """Read the file's header, and a UNet whole, as a base model is read."""
    held, folder = single_file.contents(file), source.folder
    parts = dict.fromkeys(held.parts)
    classes = check_parts(Source(str(file), folder, file), finished.pipeline, parts, weights=False)
    if finished.part != "unet":
        return
    dtype = next(each.dtype for name, each in tensors.items() if name.startswith(UNET))
    network = single_file.load(held, "unet", classes["unet"], folder, dtype)
    again = prefixed(UNET, _original("unet", network))
    wrong = [name for name, each in again.items() if not torch.equal(each, tensors[name])]
    if wrong:
        raise DirectAlignError(
            f"--format checkpoint: diffusers reads {wrong[0]} as another tensor; {INSTEAD}"
        )
