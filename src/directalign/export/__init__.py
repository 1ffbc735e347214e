"""Export runs: LoRA files for diffusers, ComfyUI and kohya's tools, single-file checkpoints, whole
pipelines, model cards.

`average` writes the mean of a run's checkpoints; `upload` copies an export to the Hugging Face Hub.
"""

from pathlib import Path
from typing import Literal

from ..evaluation.generate import export_folder
from ..io.atomic import new_folder, require_new
from ..types import DirectAlignError
from .checkpoint_file import check_checkpoint, write_checkpoint
from .finished_run import FinishedRun, base_model_info, read_finished_run
from .model_card import write_card
from .weights import DtypeName, write_lora, write_pipeline

Format = Literal["diffusers", "comfyui", "kohya", "checkpoint", "folder"]
MAX_SHARD_SIZE = "5GB"


def export_run(
    folder: Path,
    form: Format,
    out: Path | None = None,
    dtype: DtypeName | None = None,
    merge: bool = False,
    max_shard_size: str = MAX_SHARD_SIZE,
    step: int | None = None,
    strength: float = 1.0,
) -> Path:
    """Write a run's weights and README.md into a new folder and return the folder.

    Args:
        form: a LoRA file for diffusers, ComfyUI or kohya's tools; checkpoint: the whole model in
            one file in its makers' layout; folder: the whole pipeline for diffusers.
        out: None takes RUN/export/FORM, with step and strength in its name if they are given.
        dtype: of the weights; None keeps a LoRA in float32 and writes a whole model in bfloat16.
        merge: merge a LoRA into the base model; for folder.
        max_shard_size: of one file of weights, for folder.
        step, strength: which weights, see `evaluation.run_weights.find_weights`.
    Raises:
        DirectAlignError: no run, a format that does not fit it, or an existing folder.
    """
    finished = read_finished_run(folder, step, strength)
    _check_format(finished, form, merge)
    out = out or export_folder(finished.weights, form)
    require_new(out)
    base = base_model_info(finished.run.model)
    with new_folder(out) as target:
        if form == "folder":
            write_pipeline(finished, target, dtype or "bfloat16", max_shard_size)
        elif form == "checkpoint":
            write_checkpoint(finished, target, base, dtype or "bfloat16")
        else:
            write_lora(finished, target, base, form, dtype)
        write_card(finished, base, form, target)
    return out


def _check_format(finished: FinishedRun, form: Format, merge: bool) -> None:
    run, folder, lora = finished.folder, form == "folder", finished.run.model.tune == "lora"
    if form == "checkpoint":
        check_checkpoint(finished)
    if merge and not folder:
        raise DirectAlignError(
            f"--merge: merges a LoRA into the base model; omit it for --format {form}, or give "
            "--format folder"
        )
    if folder and lora and not merge:
        raise DirectAlignError(
            f"--format folder: {run} trained a LoRA; add --merge, or give --format diffusers"
        )
    if folder and not lora and merge:
        raise DirectAlignError(f"--merge: {run} trained all weights, not a LoRA; omit --merge")
    if form not in ("folder", "checkpoint") and not lora:
        raise DirectAlignError(
            f"--format {form}: {run} trained all weights, not a LoRA; give --format folder"
        )
