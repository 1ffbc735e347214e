"""LoRA file formats: layer names of diffusers, ComfyUI and kohya's sd-scripts, and the metadata.

`modelspec.*` (the Stability AI model specification) is displayed by ComfyUI, A1111 and Forge; A1111
sorts LoRAs by `ss_base_model_version`; `directalign.*` records the origin. No local path is
written.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from .. import __version__
from ..models import model_class
from ..models.lora_files import LowRank
from ..types import DirectAlignError
from .finished_run import PUBLISHED, BaseModelInfo, FinishedRun

LoraFormat = Literal["diffusers", "comfyui", "kohya"]


def fuse(parts: Mapping[int, LowRank], shares: tuple[int, ...]) -> LowRank:
    """One update of a layer that stacks `len(shares)` layers with heights in these proportions.

    `parts` maps positions in the stack to updates; the rows of missing positions are 0. Ranks add.

    Raises: DirectAlignError for heights in other proportions.
    """
    heights = {len(update.up) // shares[i] for i, update in parts.items()}
    if len(heights) != 1:
        raise DirectAlignError(
            f"layers of heights {sorted(len(each.up) for each in parts.values())} cannot be fused "
            f"in proportions {shares}; use --format diffusers"
        )
    ends = torch.tensor(shares).cumsum(0) * heights.pop()
    present = [parts[i] for i in sorted(parts)]
    up = present[0].up.new_zeros(int(ends[-1]), sum(each.rank for each in present))
    column = 0
    for i in sorted(parts):
        update, end = parts[i], int(ends[i])
        up[end - len(update.up) : end, column : column + update.rank] = update.up
        column += update.rank
    return LowRank(torch.cat([each.down for each in present]), up)


@dataclass(frozen=True)
class TargetLayer:
    """Layer of another format: position `part` in a layer `name` that stacks rows by `shares`.

    `height`: rows per share if readers of the format accept no other number.
    """

    name: str
    part: int = 0
    shares: tuple[int, ...] = (1,)
    height: int | None = None


LAYERS_PER_BLOCK = 2
"""Of SDXL's UNet, unless its config has another number; blocks are counted with it."""


@cache
def _table(architecture: str) -> dict[str, TargetLayer]:
    """By name in diffusers with * for the block: the layers of published.yaml."""
    table: dict[str, TargetLayer] = {}
    for name, given in PUBLISHED["layers"][architecture].items():
        entry = given if isinstance(given, dict) else {"layers": given}
        layers = [given] if isinstance(given, str) else entry["layers"]
        shares = tuple(entry.get("shares", (1,) * len(layers)))
        for part, layer in enumerate(layers):
            table[layer] = TargetLayer(name, part, shares, entry.get("height"))
    return table


def target_layer(
    layer: str, architecture: str, names: str, layers_per_block: int
) -> TargetLayer | None:
    """The layer of another format, None if it has no name there; `names`: see published.yaml."""
    if names == "sdxl":
        return sdxl_names(layer, layers_per_block)
    if names != "layers":
        return TargetLayer(layer) if re.match(names, layer) else None
    match = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
    found = _table(architecture).get(f"{match[1]}.*.{match[3]}") if match else None
    return found and match and replace(found, name=found.name.replace("*", match[2]))


def sdxl_names(layer: str, layers_per_block: int) -> TargetLayer | None:
    """SDXL's attention blocks as numbered in Stability AI's UNet, through all resolutions."""
    match = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.attentions\.(\d+)\.(.+)", layer
    )
    if match is None:
        return None
    kind, block, number, inside = match[1], int(match[2] or 0), int(match[3]), match[4]
    count = (layers_per_block + 1) * block + number
    heads = {
        "down_blocks": f"input_blocks.{count + 1}.1",
        "up_blocks": f"output_blocks.{count}.1",
        "mid_block": "middle_block.1",
    }
    return TargetLayer(f"{heads[kind]}.{inside}")


def key_format(architecture: str, form: LoraFormat) -> dict[str, Any]:
    """Keys of a model architecture in `form`, see published.yaml.

    Raises: DirectAlignError if there are none.
    """
    if form == "diffusers":
        return {"names": "", "prefix": f"{model_class(architecture).part}."}
    formats = PUBLISHED["formats"][form]
    if architecture not in formats:
        raise DirectAlignError(
            f"--format {form}: no {form} format is known for model.architecture {architecture} "
            f"(known: {', '.join(formats)}); use --format diffusers"
        )
    return formats[architecture]


def convert(
    updates: Mapping[str, LowRank],
    architecture: str,
    form: LoraFormat,
    layers_per_block: int = LAYERS_PER_BLOCK,
) -> dict[str, Tensor]:
    """Tensors of a file in `form`. Layers are fused where the format stacks them; products stay.

    Raises: DirectAlignError for an unknown format, or a layer that it has no name or size for.
    """
    keys = key_format(architecture, form)
    groups: dict[tuple[str, tuple[int, ...]], dict[int, LowRank]] = {}
    for layer, update in updates.items():
        target = target_layer(layer, architecture, keys["names"], layers_per_block)
        if target is None:
            raise DirectAlignError(
                f"{layer} has no name in the {form} format of {architecture}; use --format "
                "diffusers, or train without this layer (model.lora.targets)"
            )
        width = len(update.up) // target.shares[target.part]
        if target.height not in (None, width):
            raise DirectAlignError(
                f"--format {form}: readers accept {target.name} of {architecture} only at its full "
                f"width of {target.height}, and {layer} is of {width}; use --format diffusers"
            )
        groups.setdefault((target.name, target.shares), {})[target.part] = update
    tensors: dict[str, Tensor] = {}
    for (name, shares), parts in groups.items():
        fused = parts[0] if len(shares) == 1 else fuse(parts, shares)
        key = keys["prefix"] + (name.replace(".", "_") if keys.get("flat") else name)
        tensors[f"{key}.{keys.get('down', 'lora_A')}.weight"] = fused.down
        tensors[f"{key}.{keys.get('up', 'lora_B')}.weight"] = fused.up
        if keys.get("alpha"):
            tensors[f"{key}.alpha"] = torch.tensor(float(fused.rank))
    return tensors


def file_metadata(
    finished: FinishedRun,
    base: BaseModelInfo,
    form: LoraFormat | Literal["checkpoint"],
    text_width: int = 0,
    prediction: str | None = None,
) -> dict[str, str]:
    """Metadata of the safetensors header.

    `text_width` is that of the text features, which tells SD 1 from 2; `prediction`, of a
    checkpoint, is what the network predicts.
    """
    run, size = finished.run, (finished.run.rollout.width, finished.run.rollout.height)
    written = datetime.fromtimestamp(finished.weights.path.stat().st_mtime, timezone.utc)
    architecture = modelspec_name(run.model.architecture, base, text_width)
    what = "Finetuned from" if form == "checkpoint" else f"{finished.adapter} for"
    modelspec = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture + ("" if form == "checkpoint" else "/lora"),
        "implementation": PUBLISHED["implementation"][form],
        "title": finished.title,
        "prediction_type": prediction,
        "resolution": f"{size[0]}x{size[1]}" if all(size) else None,
        "description": f"{what} {base.name}, aligned to a reward model with directalign "
        f"({run.method.name})",
        "date": written.isoformat(timespec="seconds"),
        "license": base.license and base.license.title,
        "usage_hint": "no trigger words",
    }
    own = {
        "version": __version__,
        "base_model": base.name,
        "recipe_sha256": hashlib.sha256((finished.folder / "run.yaml").read_bytes()).hexdigest(),
        "trigger_words": "none",
        "commit": finished.records.summary.get("commit"),
    }
    return {
        "format": "pt",
        **{f"modelspec.{key}": value for key, value in modelspec.items() if value},
        **(_kohya_metadata(finished, base, architecture) if form in ("comfyui", "kohya") else {}),
        **{f"directalign.{key}": str(value) for key, value in own.items() if value},
    }


def modelspec_name(model: str, base: BaseModelInfo, text_width: int) -> str:
    """Name of an architecture in the model specification."""
    if model == "sd":
        return PUBLISHED["modelspec"]["sd"].get(text_width, "stable-diffusion")
    if base.hub_id == "black-forest-labs/FLUX.1-dev":
        return "flux-1-dev"
    return PUBLISHED["modelspec"].get(model, model)


def _kohya_metadata(
    finished: FinishedRun, base: BaseModelInfo, architecture: str
) -> dict[str, str]:
    """The metadata of sd-scripts that applies to our LoRAs."""
    run, train = finished.run, finished.run.train
    version = PUBLISHED["kohya_version"].get(architecture)
    values = {
        "v2": architecture.startswith("stable-diffusion-v2"),
        "network_module": PUBLISHED["kohya_module"].get(run.model.architecture, "networks.lora"),
        "network_dim": run.model.lora.rank,
        "network_alpha": run.model.lora.rank,
        "output_name": finished.title,
        "sd_model_name": base.name,
        "seed": run.seed,
        "steps": finished.num_steps,
        "learning_rate": train.learning_rate,
        "optimizer": train.optimizer,
        "max_grad_norm": train.max_grad_norm,
    } | ({"base_model_version": version} if version else {})
    return {f"ss_{key}": str(value) for key, value in values.items()}
