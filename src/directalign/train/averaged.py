"""`directalign average`: the uniform mean of a run's checkpoints as a folder that sample, evaluate and export take for a run.

run.yaml      the run's recipe under another name; of a LoRA with the rank of the mean
lora.safetensors | transformer/ | unet/
summary.json  under `averaged`: which checkpoints, whose weights, the base model's share, the error of a reduced rank
Left out: other weights than equal ones, and checkpoints of several runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import config
from ..config_loading import dump_run
from ..export.averaging import mean_update, mean_weight, reduced
from ..export.low_rank import DOWN, UP, LowRank
from ..export.writing import refuse_taken, whole_folder
from ..families import tuning
from ..families.loading import FAMILIES
from ..families.parts import load_parts
from ..families.source import open_source
from ..types import DirectAlignError
from . import snapshot, summary
from .chosen import Chosen, choose, read

RECORD = "summary.json"
BUNCH = 2**30
"""Bytes of weights that are read at once."""


def average_run(
    folder: Path,
    out: Path,
    steps: Sequence[int] | None = None,
    last: int | None = None,
    ema: bool | None = None,
    base_share: float = 0.0,
    rank: int | None = None,
) -> Path:
    """Write the mean of checkpoints of the run in `folder` into the new folder `out`, and return it.

    Args:
        steps, last: which checkpoints: these, or the newest so many; one of the two.
        ema: their moving average, or the weights themselves; None takes the average where there is one.
        base_share: share of the base model in [0, 1): 0 is the mean itself; a LoRA is scaled by 1 − base_share.
        rank: of the LoRA that is written; None keeps the mean exact, at the sum of the ranks.
    Raises:
        DirectAlignError: no such run or checkpoints, one that is damaged, of another architecture or format, a folder that is taken.
    """
    if not 0 <= base_share < 1:
        raise DirectAlignError(f"--base-share {base_share}: give a share of the base model from 0, the mean itself, to less than 1")
    refuse_taken(out)
    chosen = choose(folder, steps, last, ema)
    write = _write_full if chosen.run.model.tune == "full" else _write_lora
    with whole_folder(out) as target:
        run, told = write(chosen, base_share, rank, target)
        named = run.model_copy(update={"name": _name(chosen, base_share)})
        (target / "run.yaml").write_text(dump_run(named), encoding="utf-8")
        (target / RECORD).write_text(json.dumps(_record(folder, chosen, base_share, told), indent=2) + "\n", encoding="utf-8")
    return out


def _write_full(chosen: Chosen, base_share: float, rank: int | None, target: Path) -> tuple[config.Run, dict[str, Any] | None]:
    """The base model's denoiser, with the mean put in place of its weights bunch by bunch."""
    if rank is not None:
        raise DirectAlignError(f"--rank {rank}: this run trained all weights, there is no LoRA to reduce: leave --rank out")
    model, family = chosen.run.model, FAMILIES[chosen.run.model.family]
    loaded = load_parts(open_source(model), family.pipeline, {family.part: None}, {family.part: getattr(torch, model.trained_dtype)})
    network: Any = loaded[family.part]
    tuning.make_trainable(network, model, (), chosen.run.seed)
    if snapshot.architecture(network) != chosen.architecture:
        raise DirectAlignError(f"{chosen.folders[0]} is of another architecture than {model.path}: model.path in run.yaml names another model by now")
    for names in _bunches(dict(network.named_parameters())):
        tuned = [read(folder, chosen.group, names) for folder in chosen.folders]
        for name in names:
            parameter = network.get_parameter(name)
            parameter.data = mean_weight([each[name] for each in tuned], parameter.data, base_share)
    network.save_pretrained(target / family.part)
    return chosen.run, None


def _write_lora(chosen: Chosen, base_share: float, rank: int | None, target: Path) -> tuple[config.Run, dict[str, Any]]:
    """One LoRA whose update is the mean of theirs; no network is loaded."""
    lora, part = chosen.run.model.lora, FAMILIES[chosen.run.model.family].part
    each = [_updates(folder, chosen.group, lora.alpha / lora.rank) for folder in chosen.folders]
    exact = {layer: mean_update([updates[layer] for updates in each], base_share) for layer in each[0]}
    rank = rank or len(each) * lora.rank
    _check_rank(exact, rank, len(each))
    written, errors = {}, {}
    for layer, update in exact.items():
        fitted, errors[layer] = reduced(update, rank)
        written |= {f"{part}.{layer}{DOWN}": fitted.down.contiguous(), f"{part}.{layer}{UP}": fitted.up.contiguous()}
    save_file(written, target / tuning.LORA_FILE, metadata={"format": "pt"})
    own = lora.model_copy(update={"rank": rank, "alpha": rank})  # alpha over rank is in the second factor
    run = chosen.run.model_copy(update={"model": chosen.run.model.model_copy(update={"lora": own})})
    worst = max(errors, key=lambda layer: errors[layer])
    return run, {"trained_rank": lora.rank, "rank": rank, "largest_relative_error": errors[worst], "of_layer": worst}


def _check_rank(exact: Mapping[str, LowRank], rank: int, count: int) -> None:
    """What peft accepts: no rank above the smaller side of a layer; and none above what there is."""
    held = next(iter(exact.values())).rank
    side, layer = min((min(update.down[0].numel(), len(update.up)), layer) for layer, update in exact.items())
    if rank > held:
        raise DirectAlignError(f"--rank {rank}: the mean of {count} has rank {held} and is exact with it: give less, or leave --rank out")
    if rank > side:
        raise DirectAlignError(f"a LoRA of rank {rank} is more than {layer} can take, whose smaller side is {side}: add --rank {side} or less")


def _updates(folder: Path, group: str, scale: float) -> dict[str, LowRank]:
    """{layer: its update}, the run's alpha over rank in the second factor."""
    found = {name.replace(f".{tuning.ADAPTER}.", "."): tensor for name, tensor in read(folder, group).items()}
    layers = sorted(name.removesuffix(DOWN) for name in found if name.endswith(DOWN))
    return {layer: LowRank(found[layer + DOWN], scale * found[layer + UP]) for layer in layers}


def _bunches(weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names, in their order, in bunches of `BUNCH` bytes or a single tensor."""
    names, size = list[str](), 0
    for name, tensor in weights.items():
        size += tensor.numel() * tensor.element_size()
        if names and size > BUNCH:
            yield names
            names, size = [], tensor.numel() * tensor.element_size()
        names.append(name)
    yield names


# --- what is said of it -----------------------------------------------------------------------------------------------


def _name(chosen: Chosen, base_share: float) -> str:
    base = f", {base_share:g} of the base model" if base_share else ""
    return f"{chosen.run.name}, mean of steps {', '.join(map(str, chosen.steps))}{base}"


def _record(folder: Path, chosen: Chosen, base_share: float, lora: dict[str, Any] | None) -> dict[str, Any]:
    """What a run's summary says that is true of this folder too, nothing measured, and where the weights come from."""
    averaged = {"run": str(folder), "steps": chosen.steps, "weights": chosen.group, "base_share": base_share, "lora": lora}
    return {"name": _name(chosen, base_share), "seed": chosen.run.seed, "averaged": averaged, "commit": summary.commit(), "versions": summary.versions()}
