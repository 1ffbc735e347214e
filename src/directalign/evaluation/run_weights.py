"""Find and load the trained weights of a run: those it exported, or those of a checkpoint.

A strength scales the update of a LoRA, and takes all weights that share of the way from the base
model: 0 is the base model, 1 is as trained.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import config
from ..interfaces import Model
from ..io.checkpoint_files import (
    AVERAGE,
    WEIGHTS,
    all_of,
    list_tensors,
    read_group,
    read_whole_record,
    step_of,
)
from ..io.text import read_json
from ..models import lora, model_class
from ..models.checkpoint_source import check_base
from ..models.lora_files import Update, scaled, updates_of
from ..types import DirectAlignError

logger = logging.getLogger(__name__)
GROUP_BYTES = 2**30
"""Bytes of weights that are read at once."""
MAX_STRENGTH = 10.0


@dataclass(frozen=True)
class RunWeights:
    """Weights of a run. `path`: `lora.safetensors`, the trained denoiser's folder, or a checkpoint.

    `step` and `group` (`weights` or `ema`) are those of the checkpoint, None and empty for the
    exported weights.
    """

    run: config.RunConfig
    folder: Path
    path: Path
    step: int | None = None
    group: str = ""
    strength: float = 1.0

    @property
    def words(self) -> list[str]:
        """["step 10", "strength 0.5"]; empty for the exported weights as they are."""
        return _words(self.step, self.strength)

    @property
    def options(self) -> str:
        """The options of the commands that select these weights: ` --step 10 --strength 0.5`."""
        return "".join(f" --{each}" for each in self.words)

    @property
    def files(self) -> list[Path]:
        """The files that hold the weights."""
        return [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))

    def adapters(self) -> dict[str, Tensor]:
        """Tensors of the adapters by name in a file, see `models.lora_files`."""
        if self.step is None:
            part = model_class(self.run.model.architecture).part
            found = lora.read_saved(self.folder, part)
        else:
            settings = self.run.model.lora
            found = read_group(self.path, self.group)
            found = lora.file_tensors(found, settings.alpha / settings.rank)
        return found if self.strength == 1 else scaled(found, self.strength)

    def updates(self) -> dict[str, Update]:
        """The updates of the layers that have adapters, by layer."""
        return updates_of(self.adapters(), self.path)

    def load(self, model: Model) -> None:
        """Load the weights into a model made by `load_model(run.model)`."""
        if self.step is None and self.strength == 1:
            lora.load(model.denoiser, self.folder, model.part)
        elif self.run.model.tune == "lora":
            lora.load_adapters(model.denoiser, self.adapters(), self.path)
        else:
            blend(model.denoiser, [self])

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of all-weights training by name, as stored: without the strength."""
        if self.step is not None:
            return read_group(self.path, self.group, names)
        found = lora.read_full(self.path)
        return {name: found[name] for name in names}


def suffix_of(step: int | None, strength: float) -> str:
    """-step-10-strength-0.5, for names of files and folders; empty for the exported weights."""
    return "".join(f"-{each.replace(' ', '-')}" for each in _words(step, strength))


def _words(step: int | None, strength: float) -> list[str]:
    shown = [] if step is None else [f"step {step}"]
    return shown + ([] if strength == 1 else [f"strength {strength:g}"])


def find_weights(
    run: config.RunConfig, folder: Path, step: int | None = None, strength: float = 1.0
) -> RunWeights:
    """Find the weights of the run in `folder` and check that its base model is still the same.

    Args:
        step: of a checkpoint; None takes the exported weights, and of a run that is not finished
            the newest checkpoint, which is logged in one line.
        strength: see above, 0 to 10.
    Raises:
        DirectAlignError: no such checkpoint or none at all, a damaged one, another base model or
            other adapters, or a strength that cannot be applied.
    """
    _check_strength(run, strength)
    part = model_class(run.model.architecture).part
    exported = folder / (lora.LORA_FILE if run.model.tune == "lora" else part)
    saved = {step_of(path): path for path in all_of(folder / "checkpoints")}
    finished = _exported_step(folder) if exported.exists() else None
    newest = None
    if step is None and finished is not None and max(saved, default=0) <= finished[0]:
        step = None
    elif step is None:
        if not saved:
            raise DirectAlignError(
                f"{exported}: no such file, the run is not finished and has no checkpoint; "
                f"continue it with directalign train RECIPE --resume --out {folder}"
            )
        step = newest = max(saved)
    elif step not in saved and finished is not None and step == finished[1]:
        step = None
    if step is None:
        check_base(run.model, folder)
        return RunWeights(run, folder, exported, strength=strength)
    kept = {step_of(path): path for path in all_of(folder / "best")} | saved
    if step not in kept:
        listed = ", ".join(map(str, sorted(kept))) or "none"
        raise DirectAlignError(
            f"--step {step}: {folder} has no checkpoint of it, but of {listed} "
            "(train.save_every and train.keep_checkpoints decide)"
        )
    group = WEIGHTS
    if step in saved:
        record = read_whole_record(saved[step])
        known = {"model": record["config"]["model"], "base": record.get("base")}
        check_base(run.model, folder, known)
        if any(name.startswith(f"{AVERAGE}.") for name in list_tensors(saved[step])):
            group = AVERAGE
    else:
        check_base(run.model, folder)
    if newest is not None:
        logger.warning(
            f"{folder}: not finished, taking its newest checkpoint, step {step} of "
            f"{run.train.num_steps}"
        )
    return RunWeights(run, folder, kept[step], step, group, strength)


def _check_strength(run: config.RunConfig, strength: float) -> None:
    if not (math.isfinite(strength) and 0 <= strength <= MAX_STRENGTH):
        raise DirectAlignError(
            f"--strength {strength:g}: give a number from 0 (the base model) over 1 (as trained) "
            f"to {MAX_STRENGTH:g}"
        )
    if strength != 1 and run.model.tune == "lora" and run.model.lora.use_dora:
        raise DirectAlignError(
            f"--strength {strength:g}: the run trained a DoRA, whose rows have a fixed norm and "
            "cannot be scaled; omit --strength"
        )


def _exported_step(folder: Path) -> tuple[float, int | None]:
    """(updates of the finished run, step of the exported weights); without record (inf, None)."""
    file = folder / "summary.json"
    summary = read_json(file, "restore this record of the run") if file.is_file() else {}
    done, kept = summary.get("num_steps"), summary.get("kept")
    if not isinstance(done, int):
        return math.inf, None
    return float(done), kept["step"] if isinstance(kept, dict) else done


@torch.no_grad()
def blend(network: nn.Module, weights: Sequence[RunWeights]) -> None:
    """Replace all weights of the base model's `network` by the mean of runs' weights.

    The mean is taken `strength` of the way from the base, which is equal for all. Memory: the
    network, and a gigabyte of each at a time.
    """
    share, parameters = 1 - weights[0].strength, dict(network.named_parameters())
    for names in _groups(parameters):
        tuned = [each.read(names) for each in weights]
        for name in names:
            parameter = parameters[name]
            values = [each[name].to(parameter.device) for each in tuned]
            parameter.data = mean_weight(values, parameter.data, share)


def mean_weight(tuned: Sequence[Tensor], base: Tensor, base_share: float) -> Tensor:
    """(1 − base_share)·mean(tuned) + base_share·base in float64, rounded to the dtype of `base`."""
    mean = sum((each.double() for each in tuned[1:]), tuned[0].double()) / len(tuned)
    return torch.lerp(mean, base.double(), base_share).to(base)


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


def split_weights(source: str) -> tuple[str, int | None, float]:
    """(folder, step, strength) of RUN, RUN@STEP, RUN@STEP:STRENGTH or RUN@:STRENGTH.

    An existing path that contains @ is a source. Raises: DirectAlignError.
    """
    folder, at, given = source.rpartition("@")
    if not at or Path(source).exists() or not (Path(folder) / "run.yaml").is_file():
        return source, None, 1.0
    step, _, strength = given.partition(":")
    try:
        return folder, int(step) if step else None, float(strength) if strength else 1.0
    except ValueError as error:
        raise DirectAlignError(
            f"{source}: write a run's checkpoint as {folder}@10, its strength as {folder}@10:0.5 "
            f"or {folder}@:0.5"
        ) from error
