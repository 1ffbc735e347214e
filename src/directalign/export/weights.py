"""Writes what was trained: a LoRA file in one of three layouts, or a complete pipeline folder that diffusers loads by itself.

A pipeline is written part by part, so that no more than one network is in memory: the trained denoiser (or the base with the
LoRA merged into it), beside it the base's other parts in the same dtype; tokenizers and schedulers are copied as they are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn

from ..models.checkpoint_source import UNUSED, Source, open_source
from ..models.components import check_parts, load_parts
from ..models.weight_files import read_json, weights_files
from ..types import DirectAlignError
from . import lora_formats
from .finished_run import Base, Finished
from .lora_formats import LoraFormat, LowRank, converted, read_updates

DtypeName = Literal["float32", "bfloat16", "float16"]
SHARD_SIZE = re.compile(r"\d+(KB|MB|GB)")
BESIDE = ("directalign.json", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""Files of the base's folder that go with it."""


def lora_file(finished: Finished, form: LoraFormat) -> str:
    """The name that diffusers looks for, or one that tells LoRAs apart in a folder of them."""
    return (
        "pytorch_lora_weights.safetensors"
        if form == "diffusers"
        else f"{finished.slug}.safetensors"
    )


def write_lora(
    finished: Finished, target: Path, base: Base, form: LoraFormat, dtype: DtypeName | None
) -> None:
    """Write the run's LoRA into `target`, as exact as it was trained (float32) or in another dtype."""
    updates = read_updates(finished.weights, finished.part)
    tensors = {
        key: tensor.to(getattr(torch, dtype or "float32")).contiguous()
        for key, tensor in converted(updates, finished.run.model.architecture, form).items()
    }
    save_file(
        tensors,
        target / lora_file(finished, form),
        metadata=lora_formats.metadata(finished, base, form, updates),
    )


def write_pipeline(finished: Finished, target: Path, dtype: DtypeName, max_shard_size: str) -> None:
    """Write the whole pipeline into `target`, weights in files of at most `max_shard_size` ("5GB"); a LoRA is merged into its base.

    Raises:
        DirectAlignError: a base that is no longer there or is another one, or a size that cannot be read.
    """
    if not SHARD_SIZE.fullmatch(max_shard_size):
        raise DirectAlignError(
            f"--max-shard-size {max_shard_size}: give a whole number and KB, MB or GB, such as 5GB"
        )
    source = open_source(finished.run.model)
    index = read_json(source.folder / "model_index.json")
    for name in [
        name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None
    ]:
        if name == finished.part:
            _denoiser(finished, source, dtype).save_pretrained(
                target / name, max_shard_size=max_shard_size
            )
        elif name in UNUSED and not (source.folder / name).is_dir():
            index |= {name: [None, None]} | (
                {"requires_safety_checker": False} if name == "safety_checker" else {}
            )
        else:
            _write_part(finished, source, name, target / name, dtype, max_shard_size)
    index = {key: value for key, value in index.items() if key != "_name_or_path"} | {
        "_diffusers_version": diffusers.__version__
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name in BESIDE:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, target / name)


def _write_part(
    finished: Finished,
    source: Source,
    name: str,
    target: Path,
    dtype: DtypeName,
    max_shard_size: str,
) -> None:
    part = (
        None
        if name in UNUSED
        else load_parts(source, finished.pipeline, {name: None}, {name: getattr(torch, dtype)})[
            name
        ]
    )
    if isinstance(part, nn.Module):
        saved: Any = part
        saved.save_pretrained(target, max_shard_size=max_shard_size)
    else:
        shutil.copytree(source.folder / name, target)


def _denoiser(finished: Finished, source: Source, dtype: DtypeName) -> Any:
    part, wanted = finished.part, getattr(torch, dtype)
    if finished.run.model.tune == "full":
        kind: Any = check_parts(source, finished.pipeline, {part: None}, weights=False)[part]
        weights_files(finished.weights)
        return kind.from_pretrained(
            finished.weights, torch_dtype=wanted, local_files_only=True, use_safetensors=True
        )
    as_trained = getattr(torch, finished.run.model.dtype)
    base = load_parts(source, finished.pipeline, {part: None}, {part: as_trained})[part]
    merge(base, read_updates(finished.weights, part), wanted)
    return base.to(wanted)


@torch.no_grad()
def merge(network: nn.Module, updates: Mapping[str, LowRank], dtype: torch.dtype) -> None:
    """Add up · down to the weights of the named layers, summed in float32 and rounded to `dtype` once.

    Raises:
        DirectAlignError: a layer that the network lacks, or that has another shape.
    """
    layers = dict(network.named_modules())
    for name, update in updates.items():
        layer: Any = layers.get(name)
        product = update.up.float().flatten(1) @ update.down.float().flatten(1)
        if layer is None or layer.weight.numel() != product.numel():
            raise DirectAlignError(
                f"{name}: the base model has no such layer, or one of another size: model.path in run.yaml names another model by now"
            )
        layer.weight.data = (layer.weight.float() + product.reshape(layer.weight.shape)).to(dtype)
