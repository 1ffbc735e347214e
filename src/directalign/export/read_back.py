"""A LoRA file is read back with diffusers before it is written: it must be the trained update."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor

from ..models.checkpoint_source import open_source
from ..models.weight_files import read_json
from ..types import DirectAlignError
from .finished_run import FinishedRun
from .lora_formats import DOWN, LAYERS_PER_BLOCK, UP, LoraFormat, LowRank

UNREAD = {("sd3", "kohya")}
"""Architectures and formats that diffusers does not read."""


def layers_per_block(finished: FinishedRun) -> int:
    """Of the base's UNet, which SDXL's block numbers are counted with.

    Raises: DirectAlignError for a base that cannot be read, or has blocks of different lengths.
    """
    if finished.run.model.architecture != "sdxl":
        return LAYERS_PER_BLOCK
    source = open_source(finished.run.model, weights=False)
    file = source.folder / finished.part / "config.json"
    count = read_json(file).get("layers_per_block", LAYERS_PER_BLOCK)
    if not isinstance(count, int):
        raise DirectAlignError(
            f"{file}: layers_per_block is {count}, and the blocks of this format are counted with "
            "one number; use --format diffusers"
        )
    return count


def check_read_back(
    tensors: Mapping[str, Tensor],
    finished: FinishedRun,
    updates: Mapping[str, LowRank],
    form: LoraFormat,
    count: int,
) -> None:
    """Raise DirectAlignError unless diffusers reads the updates from the tensors of a file."""
    if (finished.run.model.architecture, form) in UNREAD:
        return
    pipeline: Any = getattr(diffusers, finished.pipeline)
    given = {key: tensor.clone() for key, tensor in tensors.items()}
    try:
        found = pipeline.lora_state_dict(given, unet_config=SimpleNamespace(layers_per_block=count))
        if isinstance(found, tuple):  # of a UNet, with alphas by layer
            found, alphas = found
            if {*(alphas or {}).values()} - {each.rank for each in updates.values()}:
                raise ValueError("an alpha is not the rank")
            found = convert_unet_state_dict_to_peft(found)
    except (ValueError, KeyError, RuntimeError, IndexError, AttributeError) as error:
        raise _differs(form, f"diffusers cannot read it ({error})") from error
    names = {f"{finished.part}.{name}{end}" for name in updates for end in (DOWN, UP)}
    wrong = found.keys() ^ names
    # layers that were stacked come back with the rows that were not trained, as zeros
    wrong = {key for key in wrong if key not in found or bool(found[key].any())}
    for name, update in updates.items():
        key = f"{finished.part}.{name}"
        if not wrong and not _same(update, LowRank(found[key + DOWN], found[key + UP])):
            wrong = {key}
    if wrong:
        raise _differs(form, f"diffusers reads {min(wrong)} as another update")


def _same(ours: LowRank, theirs: LowRank) -> bool:
    """Whether up · down · probe is equal, for a fixed probe."""
    down, other = ours.down.flatten(1).double(), theirs.down.flatten(1).double()
    if down.shape[1] != other.shape[1] or len(ours.up) != len(theirs.up):
        return False
    probe = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(0)).double()
    given, read = (
        each.up.flatten(1).double() @ (factor @ probe)
        for each, factor in ((ours, down), (theirs, other))
    )
    return bool((given - read).norm() <= 1e-5 * given.norm())


def _differs(form: str, reason: str) -> DirectAlignError:
    return DirectAlignError(
        f"--format {form}: {reason}; use --format diffusers, or train other layers "
        "(model.lora.targets)"
    )
