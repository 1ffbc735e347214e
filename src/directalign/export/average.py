"""The uniform mean of a run's checkpoints, as a folder that sample, evaluate and export accept.

run.yaml      the run's recipe under another name; for a LoRA with the rank of the mean
lora.safetensors | transformer/ | unet/
summary.json  `averaged`: checkpoints, group of weights, share of the base model, rank error

Not supported: unequal weights, and checkpoints of several runs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import config
from ..config.load import dump_run
from ..evaluation.run_weights import RunWeights, blend, find_weights
from ..io import atomic
from ..io.checkpoint_files import WEIGHTS, all_of, read_record, step_of
from ..models import lora as tuning
from ..models import model_class
from ..models.checkpoint_source import open_source
from ..models.components import load_parts
from ..models.lora_files import DOWN, UP, LowRank, plain_updates
from ..training import checkpoint, run_folder
from ..types import DirectAlignError
from .finished_run import load_run_config

RECORD = "summary.json"


def mean_update(tuned: Sequence[LowRank]) -> LowRank:
    """The mean of up · down, exactly: factors are concatenated, so ranks add."""
    share = 1 / len(tuned)
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


def select_checkpoints(
    folder: Path, steps: Sequence[int] | None, last: int | None, ema: bool | None, strength: float
) -> list[RunWeights]:
    """Checkpoints of one run to average, oldest first. Raises: DirectAlignError."""
    run = load_run_config(folder)
    if ema and run.train.ema_decay is None:
        raise DirectAlignError(
            f"--ema: {folder} has no moving average (train.ema_decay); omit --ema"
        )
    group = {"group": WEIGHTS} if ema is False else {}
    folders = _find_checkpoints(folder / "checkpoints", steps, last)
    found = [find_weights(run, folder, step_of(each), strength) for each in folders]
    architectures = {read_record(each)["architecture"]: each for each in folders}
    if len(architectures) > 1:
        raise DirectAlignError(
            f"{' and '.join(map(str, architectures.values()))} are of different architectures; "
            "average checkpoints of one run"
        )
    return [replace(each, **group) for each in found]


def _find_checkpoints(
    folder: Path, steps: Sequence[int] | None, last: int | None
) -> tuple[Path, ...]:
    found = {step_of(path): path for path in all_of(folder)}
    listed = (
        f"{folder} holds {', '.join(map(str, found)) or 'none'} (train.save_every and "
        "train.keep_checkpoints decide)"
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
    selection = select_checkpoints(folder, steps, last, ema, 1 - base_share)
    first = selection[0]
    write = _write_full if first.run.model.tune == "full" else _write_lora
    with atomic.new_folder(out) as target:
        run, lora = write(selection, rank, target)
        base = f", {base_share:g} of the base model" if base_share else ""
        steps = [step_of(each.path) for each in selection]
        name = f"{run.name}, mean of steps {', '.join(map(str, steps))}{base}"
        record = {
            "name": name,
            "seed": run.seed,
            "averaged": {
                "run": str(folder),
                "steps": steps,
                "weights": first.group,
                "base_share": base_share,
                "lora": lora,
            },
            "base": read_record(selection[-1].path).get("base"),
            "commit": run_folder.commit(),
            "versions": run_folder.versions(),
        }
        yaml = dump_run(run.model_copy(update={"name": name}))
        (target / "run.yaml").write_text(yaml, encoding="utf-8")
        (target / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return out


def _write_full(
    selection: Sequence[RunWeights], rank: int | None, target: Path
) -> tuple[config.RunConfig, dict[str, Any] | None]:
    """Load the base model's denoiser, replace its weights in groups by the mean, and save it."""
    if rank is not None:
        raise DirectAlignError(
            f"--rank {rank}: this run trained all weights, not a LoRA; omit --rank"
        )
    first = selection[0]
    model, architecture = first.run.model, model_class(first.run.model.architecture)
    part, dtype = architecture.part, getattr(torch, first.run.model.trained_dtype)
    parts = load_parts(open_source(model), architecture.pipeline, {part: None}, {part: dtype})
    network: Any = parts[part]
    tuning.make_trainable(network, model, (), first.run.seed)
    if checkpoint.architecture(network) != read_record(first.path)["architecture"]:
        raise DirectAlignError(
            f"{first.path} is of another architecture than {model.path}; model.path in "
            "run.yaml now refers to another model"
        )
    blend(network, selection)
    network.save_pretrained(target / part)
    return first.run, None


def _write_lora(
    selection: Sequence[RunWeights], rank: int | None, target: Path
) -> tuple[config.RunConfig, dict[str, Any]]:
    """One LoRA with the mean update; no network is loaded. alpha / rank moves into `up`."""
    run, count = selection[0].run, len(selection)
    lora, part = run.model.lora, model_class(run.model.architecture).part
    remedy = "take one of its checkpoints with --step"
    each = [plain_updates(one.updates(), "average", remedy) for one in selection]
    exact = {layer: mean_update([one[layer] for one in each]) for layer in each[0]}
    rank = rank or count * lora.rank
    _check_rank(exact, rank, count)
    written, errors = {}, {}
    for layer, update in exact.items():
        reduced, errors[layer] = reduce_rank(update, rank)
        written[f"{part}.{layer}{DOWN}"] = reduced.down.contiguous()
        written[f"{part}.{layer}{UP}"] = reduced.up.contiguous()
    save_file(written, target / tuning.LORA_FILE, metadata={"format": "pt"})
    own = lora.model_copy(update={"rank": rank, "alpha": rank})
    model = run.model.model_copy(update={"lora": own})
    worst = max(errors, key=lambda layer: errors[layer])
    return run.model_copy(update={"model": model}), {
        "trained_rank": lora.rank,
        "rank": rank,
        "largest_relative_error": errors[worst],
        "of_layer": worst,
    }


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
