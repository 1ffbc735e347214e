"""`directalign average`: the uniform mean of a run's checkpoints as a folder that sample, evaluate and export accept as a run.

run.yaml      the run's recipe under another name; of a LoRA with the rank of the mean
lora.safetensors | transformer/ | unet/
summary.json  under `averaged`: which checkpoints, whose weights, the base model's share, the error of a reduced rank
Left out: weights other than equal ones, and checkpoints of several runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import config
from ..config.load import dump_run, load_run
from ..io import atomic
from ..models import lora as tuning
from ..models import model_class
from ..models.checkpoint_source import open_source
from ..models.components import load_parts
from ..training import checkpoint, run_folder
from ..training.checkpoint import AVERAGE, WEIGHTS
from ..types import DirectAlignError
from . import refuse_taken, whole_folder
from .lora_formats import DOWN, UP, LowRank


def mean_weight(tuned: Sequence[Tensor], base: Tensor, base_share: float) -> Tensor:
    """(1 − base_share)·mean(tuned) + base_share·base, summed in float64 and rounded once to the dtype of `base`; all of one shape."""
    mean = sum((each.double() for each in tuned[1:]), tuned[0].double()) / len(tuned)
    return torch.lerp(mean, base.double(), base_share).to(base)


def mean_update(tuned: Sequence[LowRank], base_share: float) -> LowRank:
    """The update (1 − base_share)·mean(up · down), exactly: first factors stacked, second ones side by side, so ranks add up."""
    share = (1 - base_share) / len(tuned)
    return LowRank(
        torch.cat([each.down for each in tuned]),
        share * torch.cat([each.up for each in tuned], dim=1),
    )


def reduced(update: LowRank, rank: int) -> tuple[LowRank, float]:
    """The update of this rank that is nearest in the Frobenius norm, and its distance over the norm of the whole; 0 for one that is 0.

    The product is never formed: with up = Q·R and downᵀ = P·S, the singular values of up · down are those of the small R · Sᵀ.
    Each factor takes the root of them. A rank that the update does not exceed leaves it as it is.
    """
    if rank >= update.rank:
        return update, 0.0
    left, above = torch.linalg.qr(update.up.double().flatten(1))
    right, below = torch.linalg.qr(update.down.double().flatten(1).T)
    u, values, vh = torch.linalg.svd(above @ below.T, full_matrices=False)
    roots = values[:rank].sqrt()
    up, down = left @ u[:, :rank] * roots, roots[:, None] * (vh[:rank] @ right.T)
    whole = float(values.norm())
    nearest = LowRank(
        down.reshape(rank, *update.down.shape[1:]).to(update.down),
        up.reshape(len(up), rank, *update.up.shape[2:]).to(update.up),
    )
    return nearest, float(values[rank:].norm()) / whole if whole else 0.0


@dataclass(frozen=True)
class CheckpointSelection:
    """Checkpoints of one run, oldest first, and which of their weights: `weights`, or their average `ema`."""

    run: config.RunConfig
    folders: tuple[Path, ...]
    group: str
    architecture: str

    @property
    def steps(self) -> list[int]:
        return [checkpoint.step_of(folder) for folder in self.folders]


def select_checkpoints(
    folder: Path, steps: Sequence[int] | None, last: int | None, ema: bool | None
) -> CheckpointSelection:
    """Select checkpoints to average and validate them."""
    if not (folder / "run.yaml").is_file():
        raise DirectAlignError(
            f"{folder}: holds no run (no run.yaml): give the folder that directalign train wrote"
        )
    run = load_run(folder / "run.yaml")
    folders = _find_checkpoints(folder / "checkpoints", steps, last, run.train.keep_checkpoints)
    architectures = {_read_checked_record(each)["architecture"]: each for each in folders}
    if len(architectures) > 1:
        raise DirectAlignError(
            f"{' and '.join(map(str, architectures.values()))} are of different architectures: average checkpoints of one run"
        )
    group = AVERAGE if ema or (ema is None and run.train.ema_decay is not None) else WEIGHTS
    if group == AVERAGE and run.train.ema_decay is None:
        raise DirectAlignError(
            f"--ema: {folder} kept no average of its weights (train.ema_decay): leave --ema out"
        )
    return CheckpointSelection(run, folders, group, next(iter(architectures)))


def _find_checkpoints(
    checkpoints: Path, steps: Sequence[int] | None, last: int | None, kept: int
) -> tuple[Path, ...]:
    there = {checkpoint.step_of(path): path for path in checkpoint.all_of(checkpoints)}
    listed = f"{checkpoints} holds {', '.join(map(str, there)) or 'none'} (train.keep_checkpoints: {kept} keeps the newest)"
    if (steps is None) == (last is None):
        raise DirectAlignError(
            f"say which checkpoints: --last K for the newest, or --steps 20,30,40; {listed}"
        )
    if last is not None:
        if not 1 <= last <= len(there):
            raise DirectAlignError(f"--last {last}: there are not as many checkpoints: {listed}")
        return tuple(there.values())[-last:]
    given = f"--steps {','.join(map(str, steps or ()))}"
    missing = [step for step in steps or () if step not in there]
    if missing or not steps:
        raise DirectAlignError(
            f"{given}: no checkpoint of step {', '.join(map(str, missing)) or 'any'}: {listed}"
        )
    if len(set(steps)) < len(steps):
        raise DirectAlignError(f"{given}: the mean is of equal parts: give each step once")
    return tuple(there[step] for step in sorted(steps))


def _read_checked_record(path: Path) -> Mapping[str, Any]:
    trouble = atomic.damage(path)
    if trouble is not None:
        raise DirectAlignError(f"{path}: damaged ({trouble}): leave it out, or copy it again")
    record = checkpoint.read_record(path)
    if record.get("format") != checkpoint.FORMAT:
        raise DirectAlignError(
            f"{path}: written by directalign {record['versions']['directalign']} in another format: average it with that version"
        )
    return record


def read_group(folder: Path, group: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a group of a checkpoint by name, all of them if none are named."""
    stored = {
        name.removeprefix(f"{group}."): entry
        for name, entry in checkpoint.list_tensors(folder).items()
        if name.startswith(f"{group}.")
    }
    found = {
        name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype)
        for name in names or stored
    }
    checkpoint.read_tensors(folder, {group: found})
    return found


RECORD = "summary.json"
GROUP_BYTES = 2**30
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
        raise DirectAlignError(
            f"--base-share {base_share}: give a share of the base model from 0, the mean itself, to less than 1"
        )
    refuse_taken(out)
    selection = select_checkpoints(folder, steps, last, ema)
    write = _write_full if selection.run.model.tune == "full" else _write_lora
    with whole_folder(out) as target:
        run, lora = write(selection, base_share, rank, target)
        named = run.model_copy(update={"name": _name(selection, base_share)})
        (target / "run.yaml").write_text(dump_run(named), encoding="utf-8")
        (target / RECORD).write_text(
            json.dumps(_record(folder, selection, base_share, lora), indent=2) + "\n",
            encoding="utf-8",
        )
    return out


def _write_full(
    selection: CheckpointSelection, base_share: float, rank: int | None, target: Path
) -> tuple[config.RunConfig, dict[str, Any] | None]:
    """The base model's denoiser, with the mean put in place of its weights bunch by bunch."""
    if rank is not None:
        raise DirectAlignError(
            f"--rank {rank}: this run trained all weights, there is no LoRA to reduce: leave --rank out"
        )
    model, architecture = selection.run.model, model_class(selection.run.model.architecture)
    loaded = load_parts(
        open_source(model),
        architecture.pipeline,
        {architecture.part: None},
        {architecture.part: getattr(torch, model.trained_dtype)},
    )
    network: Any = loaded[architecture.part]
    tuning.make_trainable(network, model, (), selection.run.seed)
    if checkpoint.architecture(network) != selection.architecture:
        raise DirectAlignError(
            f"{selection.folders[0]} is of another architecture than {model.path}: model.path in run.yaml names another model by now"
        )
    for names in _groups(dict(network.named_parameters())):
        tuned = [read_group(folder, selection.group, names) for folder in selection.folders]
        for name in names:
            parameter = network.get_parameter(name)
            parameter.data = mean_weight([each[name] for each in tuned], parameter.data, base_share)
    network.save_pretrained(target / architecture.part)
    return selection.run, None


def _write_lora(
    selection: CheckpointSelection, base_share: float, rank: int | None, target: Path
) -> tuple[config.RunConfig, dict[str, Any]]:
    """One LoRA whose update is the mean of theirs; no network is loaded."""
    lora, part = selection.run.model.lora, model_class(selection.run.model.architecture).part
    each = [
        _updates(folder, selection.group, lora.alpha / lora.rank) for folder in selection.folders
    ]
    exact = {
        layer: mean_update([updates[layer] for updates in each], base_share) for layer in each[0]
    }
    rank = rank or len(each) * lora.rank
    _check_rank(exact, rank, len(each))
    written, errors = {}, {}
    for layer, update in exact.items():
        fitted, errors[layer] = reduced(update, rank)
        written |= {
            f"{part}.{layer}{DOWN}": fitted.down.contiguous(),
            f"{part}.{layer}{UP}": fitted.up.contiguous(),
        }
    save_file(written, target / tuning.LORA_FILE, metadata={"format": "pt"})
    own = lora.model_copy(
        update={"rank": rank, "alpha": rank}
    )  # alpha over rank is in the second factor
    run = selection.run.model_copy(
        update={"model": selection.run.model.model_copy(update={"lora": own})}
    )
    worst = max(errors, key=lambda layer: errors[layer])
    return run, {
        "trained_rank": lora.rank,
        "rank": rank,
        "largest_relative_error": errors[worst],
        "of_layer": worst,
    }


def _check_rank(exact: Mapping[str, LowRank], rank: int, count: int) -> None:
    """What peft accepts: no rank above the smaller side of a layer; and none above what there is."""
    held = next(iter(exact.values())).rank
    side, layer = min(
        (min(update.down[0].numel(), len(update.up)), layer) for layer, update in exact.items()
    )
    if rank > held:
        raise DirectAlignError(
            f"--rank {rank}: the mean of {count} has rank {held} and is exact with it: give less, or leave --rank out"
        )
    if rank > side:
        raise DirectAlignError(
            f"a LoRA of rank {rank} is more than {layer} can take, whose smaller side is {side}: add --rank {side} or less"
        )


def _updates(folder: Path, group: str, scale: float) -> dict[str, LowRank]:
    """{layer: its update}, the run's alpha over rank in the second factor."""
    found = {
        name.replace(f".{tuning.ADAPTER}.", "."): tensor
        for name, tensor in read_group(folder, group).items()
    }
    layers = sorted(name.removesuffix(DOWN) for name in found if name.endswith(DOWN))
    return {layer: LowRank(found[layer + DOWN], scale * found[layer + UP]) for layer in layers}


def _groups(weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names, in their order, in groups of `GROUP_BYTES` bytes or a single tensor."""
    names, size = list[str](), 0
    for name, tensor in weights.items():
        size += tensor.numel() * tensor.element_size()
        if names and size > GROUP_BYTES:
            yield names
            names, size = [], tensor.numel() * tensor.element_size()
        names.append(name)
    yield names


def _name(selection: CheckpointSelection, base_share: float) -> str:
    base = f", {base_share:g} of the base model" if base_share else ""
    return f"{selection.run.name}, mean of steps {', '.join(map(str, selection.steps))}{base}"


def _record(
    folder: Path, selection: CheckpointSelection, base_share: float, lora: dict[str, Any] | None
) -> dict[str, Any]:
    """What a run's summary says that is true of this folder too, nothing measured, and where the weights come from."""
    averaged = {
        "run": str(folder),
        "steps": selection.steps,
        "weights": selection.group,
        "base_share": base_share,
        "lora": lora,
    }
    return {
        "name": _name(selection, base_share),
        "seed": selection.run.seed,
        "averaged": averaged,
        "commit": run_folder.commit(),
        "versions": run_folder.versions(),
    }
