"""The uniform mean of a run's checkpoints, as a folder that sample, evaluate and export accept.

run.yaml      the run's recipe under another name; for a LoRA with the rank of the mean
lora.safetensors | transformer/ | unet/
summary.json  `averaged`: checkpoints, group of weights, share of the base model, rank error

Not supported: unequal weights, and checkpoints of several runs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import config
from ..config.load import dump_run
from ..io import atomic
from ..models import lora as tuning
from ..models import model_class
from ..models.checkpoint_source import check_base, open_source
from ..models.components import load_parts
from ..training import checkpoint, run_folder
from ..training.checkpoint import AVERAGE, WEIGHTS
from ..types import DirectAlignError
from .finished_run import load_run_config
from .lora_formats import DOWN, UP, LowRank

RECORD = "summary.json"
GROUP_BYTES = 2**30
"""Bytes of weights that are read at once."""


def mean_weight(tuned: Sequence[Tensor], base: Tensor, base_share: float) -> Tensor:
    """(1 − base_share)·mean(tuned) + base_share·base in float64, rounded to the dtype of `base`."""
    mean = sum((each.double() for each in tuned[1:]), tuned[0].double()) / len(tuned)
    return torch.lerp(mean, base.double(), base_share).to(base)


def mean_update(tuned: Sequence[LowRank], base_share: float) -> LowRank:
    """(1 − base_share)·mean(up · down), exactly: factors are concatenated, so ranks add."""
    share = (1 - base_share) / len(tuned)
    return LowRank(
        torch.cat([each.down for each in tuned]),
        share * torch.cat([each.up for each in tuned], dim=1),
    )


def reduce_rank(update: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest update of `rank` in the Frobenius norm, and its relative error.

    The product is not formed: with up = Q·R and downᵀ = P·S, the singular values of up · down are
    those of the small R · Sᵀ. Each factor takes their square root. An update of at most `rank` is
    returned unchanged.
    """
    if rank >= update.rank:
        return update, 0.0
    left, above = torch.linalg.qr(update.up.double().flatten(1))
    right, below = torch.linalg.qr(update.down.double().flatten(1).T)
    u, values, vh = torch.linalg.svd(above @ below.T, full_matrices=False)
    roots = values[:rank].sqrt()
    up, down = left @ u[:, :rank] * roots, roots[:, None] * (vh[:rank] @ right.T)
    norm = float(values.norm())
    nearest = LowRank(
        down.reshape(rank, *update.down.shape[1:]).to(update.down),
        up.reshape(len(up), rank, *update.up.shape[2:]).to(update.up),
    )
    return nearest, float(values[rank:].norm()) / norm if norm else 0.0


@dataclass(frozen=True)
class CheckpointSelection:
    """Checkpoints of one run, oldest first; `group`: their weights, or the moving average."""

    run: config.RunConfig
    folders: tuple[Path, ...]
    group: str
    architecture: str


def select_checkpoints(
    folder: Path, steps: Sequence[int] | None, last: int | None, ema: bool | None
) -> CheckpointSelection:
    """Select checkpoints to average and validate them. Raises: DirectAlignError."""
    run = load_run_config(folder)
    folders = _find_checkpoints(folder / "checkpoints", steps, last, run.train.keep_checkpoints)
    architectures = {_read_checked_record(each)["architecture"]: each for each in folders}
    if len(architectures) > 1:
        raise DirectAlignError(
            f"{' and '.join(map(str, architectures.values()))} are of different architectures; "
            "average checkpoints of one run"
        )
    has_average = run.train.ema_decay is not None
    if ema and not has_average:
        raise DirectAlignError(
            f"--ema: {folder} has no moving average (train.ema_decay); omit --ema"
        )
    group = AVERAGE if has_average and ema is not False else WEIGHTS
    return CheckpointSelection(run, folders, group, next(iter(architectures)))


def _find_checkpoints(
    folder: Path, steps: Sequence[int] | None, last: int | None, limit: int
) -> tuple[Path, ...]:
    found = {checkpoint.step_of(path): path for path in checkpoint.all_of(folder)}
    listed = (
        f"{folder} holds {', '.join(map(str, found)) or 'none'} (train.keep_checkpoints: {limit} "
        "keeps the newest)"
    )
    if (steps is None) == (last is None):
        raise DirectAlignError(
            f"give one of --last K for the newest checkpoints and --steps 20,30,40; {listed}"
        )
    if last is not None:
        if not 1 <= last <= len(found):
            raise DirectAlignError(f"--last {last}: there are not as many checkpoints: {listed}")
        return tuple(found.values())[-last:]
    given = f"--steps {','.join(map(str, steps or ()))}"
    missing = [step for step in steps or () if step not in found]
    if missing or not steps:
        raise DirectAlignError(
            f"{given}: no checkpoint of step {', '.join(map(str, missing)) or 'any'}: {listed}"
        )
    if len(set(steps)) < len(steps):
        raise DirectAlignError(f"{given}: all checkpoints have equal weight; give each step once")
    return tuple(found[step] for step in sorted(steps))


def _read_checked_record(path: Path) -> Mapping[str, Any]:
    damage = atomic.damage(path)
    if damage is not None:
        raise DirectAlignError(f"{path}: damaged ({damage}); omit it, or copy it again")
    record = checkpoint.read_record(path)
    if record.get("format") != checkpoint.FORMAT:
        raise DirectAlignError(
            f"{path}: written by directalign {record['versions']['directalign']} in another "
            "format; average it with that version"
        )
    return record


def read_group(folder: Path, group: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a group of a checkpoint by name; None reads all."""
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


def average_run(
    folder: Path,
    out: Path,
    steps: Sequence[int] | None = None,
    last: int | None = None,
    ema: bool | None = None,
    base_share: float = 0.0,
    rank: int | None = None,
) -> Path:
    """Write the mean of checkpoints of the run in `folder` into the new folder `out`; returns it.

    Args:
        steps, last: these checkpoints, or the newest `last`; one of the two.
        ema: the moving average, or the weights; None takes the average if there is one.
        base_share: share of the base model in [0, 1); a LoRA is scaled by 1 − base_share.
        rank: of the written LoRA; None keeps the mean exact, at the sum of the ranks.
    Raises:
        DirectAlignError: no such run or checkpoints, a damaged one, one of another architecture
            or format, or an existing folder.
    """
    if not 0 <= base_share < 1:
        raise DirectAlignError(
            f"--base-share {base_share}: give a share from 0, the mean itself, to less than 1"
        )
    atomic.require_new(out)
    selection = select_checkpoints(folder, steps, last, ema)
    check_base(selection.run.model, folder)
    write = _write_full if selection.run.model.tune == "full" else _write_lora
    with atomic.new_folder(out) as target:
        run, lora = write(selection, base_share, rank, target)
        base = f", {base_share:g} of the base model" if base_share else ""
        steps = [checkpoint.step_of(each) for each in selection.folders]
        name = f"{run.name}, mean of steps {', '.join(map(str, steps))}{base}"
        record = {
            "name": name,
            "seed": run.seed,
            "averaged": {
                "run": str(folder),
                "steps": steps,
                "weights": selection.group,
                "base_share": base_share,
                "lora": lora,
            },
            "base": checkpoint.read_record(selection.folders[-1]).get("base"),
            "commit": run_folder.commit(),
            "versions": run_folder.versions(),
        }
        yaml = dump_run(run.model_copy(update={"name": name}))
        (target / "run.yaml").write_text(yaml, encoding="utf-8")
        (target / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return out


def _write_full(
    selection: CheckpointSelection, base_share: float, rank: int | None, target: Path
) -> tuple[config.RunConfig, dict[str, Any] | None]:
    """Load the base model's denoiser, replace its weights in groups by the mean, and save it."""
    if rank is not None:
        raise DirectAlignError(
            f"--rank {rank}: this run trained all weights, not a LoRA; omit --rank"
        )
    model = selection.run.model
    pipeline, part = model_class(model.architecture).pipeline, model_class(model.architecture).part
    dtypes = {part: getattr(torch, model.trained_dtype)}
    network: Any = load_parts(open_source(model), pipeline, {part: None}, dtypes)[part]
    tuning.make_trainable(network, model, (), selection.run.seed)
    if checkpoint.architecture(network) != selection.architecture:
        raise DirectAlignError(
            f"{selection.folders[0]} is of another architecture than {model.path}; model.path in "
            "run.yaml now refers to another model"
        )
    for names in _groups(dict(network.named_parameters())):
        tuned = [read_group(folder, selection.group, names) for folder in selection.folders]
        for name in names:
            parameter = network.get_parameter(name)
            parameter.data = mean_weight([each[name] for each in tuned], parameter.data, base_share)
    network.save_pretrained(target / part)
    return selection.run, None


def _groups(weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in order, in groups of at most `GROUP_BYTES` bytes or of one tensor."""
    names, size = list[str](), 0
    for name, tensor in weights.items():
        size += tensor.nbytes
        if names and size > GROUP_BYTES:
            yield names
            names, size = [], tensor.nbytes
        names.append(name)
    yield names


def _write_lora(
    selection: CheckpointSelection, base_share: float, rank: int | None, target: Path
) -> tuple[config.RunConfig, dict[str, Any]]:
    """One LoRA with the mean update; no network is loaded. alpha / rank moves into `up`."""
    model = selection.run.model
    lora, part, count = model.lora, model_class(model.architecture).part, len(selection.folders)
    scale = lora.alpha / lora.rank
    each = [_updates(folder, selection.group, scale) for folder in selection.folders]
    exact = {layer: mean_update([one[layer] for one in each], base_share) for layer in each[0]}
    rank = rank or count * lora.rank
    _check_rank(exact, rank, count)
    written, errors = {}, {}
    for layer, update in exact.items():
        reduced, errors[layer] = reduce_rank(update, rank)
        written[f"{part}.{layer}{DOWN}"] = reduced.down.contiguous()
        written[f"{part}.{layer}{UP}"] = reduced.up.contiguous()
    save_file(written, target / tuning.LORA_FILE, metadata={"format": "pt"})
    own = lora.model_copy(update={"rank": rank, "alpha": rank})
    run = selection.run.model_copy(update={"model": model.model_copy(update={"lora": own})})
    worst = max(errors, key=lambda layer: errors[layer])
    return run, {
        "trained_rank": lora.rank,
        "rank": rank,
        "largest_relative_error": errors[worst],
        "of_layer": worst,
    }


def _updates(folder: Path, group: str, scale: float) -> dict[str, LowRank]:
    """{layer: update}, with `scale` multiplied into `up`."""
    found = {
        name.replace(f".{tuning.ADAPTER}.", "."): tensor
        for name, tensor in read_group(folder, group).items()
    }
    layers = sorted(name.removesuffix(DOWN) for name in found if name.endswith(DOWN))
    return {layer: LowRank(found[layer + DOWN], scale * found[layer + UP]) for layer in layers}


def _check_rank(exact: Mapping[str, LowRank], rank: int, count: int) -> None:
    """Refuse ranks above that of the mean, and above a layer's smaller side, as peft does."""
    total = next(iter(exact.values())).rank
    sides = ((min(each.down[0].numel(), len(each.up)), layer) for layer, each in exact.items())
    side, layer = min(sides)
    if rank > total:
        raise DirectAlignError(
            f"--rank {rank}: the mean of {count} has rank {total} and is exact with it; give a "
            "lower rank, or omit --rank"
        )
    if rank > side:
        raise DirectAlignError(
            f"a LoRA of rank {rank} exceeds the smaller side {side} of {layer}; add --rank {side} "
            "or less"
        )
