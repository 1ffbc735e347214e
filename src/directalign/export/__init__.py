"""What a run leaves, in the shapes that others read: LoRA files for diffusers, ComfyUI and kohya's tools, whole pipelines, a model card, the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..types import DirectAlignError
from .finished_run import Finished, base_of, open_finished
from .model_card import write_card
from .weights import DtypeName, write_lora, write_pipeline

PARTIAL = ".partial-"


def refuse_taken(out: Path) -> None:
    """An existing file or folder is an error: exports are not written over one another."""
    if out.exists():
        raise DirectAlignError(
            f"--out {out}: is there already: name another folder, or remove it first"
        )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, renamed to `out` when everything is there and removed after an error."""
    refuse_taken(out)
    partial = out.with_name(PARTIAL + out.name)
    if partial.exists():
        shutil.rmtree(partial)  # what an export left that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise


Format = Literal["diffusers", "comfyui", "kohya", "folder"]
MAX_SHARD_SIZE = "5GB"


def export_run(
    folder: Path,
    form: Format,
    out: Path | None = None,
    dtype: DtypeName | None = None,
    merge: bool = False,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Path:
    """Write a finished run's weights and README.md into a new folder, `out` or RUN/export/FORM, and return it.

    Args:
        form: a LoRA file for diffusers, ComfyUI or kohya's tools; or folder: the whole pipeline.
        dtype: of the weights; None leaves a LoRA as it was trained (float32) and writes a pipeline in bfloat16.
        merge: put a LoRA into the base's weights; for folder.
        max_shard_size: of one file of weights, for folder.
    Raises:
        DirectAlignError: no finished run, a format that does not fit what was trained, a folder that is taken.
    """
    finished = open_finished(folder)
    _check_fits(finished, form, merge)
    out = out or folder / "export" / form
    refuse_taken(out)
    base = base_of(finished.run.model)
    with whole_folder(out) as target:
        if form == "folder":
            write_pipeline(finished, target, dtype or "bfloat16", max_shard_size)
        else:
            write_lora(finished, target, base, form, dtype)
        write_card(finished, base, form, target)
    return out


def _check_fits(finished: Finished, form: Format, merge: bool) -> None:
    tune = finished.run.model.tune
    if merge and form != "folder":
        raise DirectAlignError(
            f"--merge puts a LoRA into the base's weights: leave it out for --format {form}, or give --format folder"
        )
    if form == "folder" and tune == "lora" and not merge:
        raise DirectAlignError(
            f"--format folder: {finished.folder} trained a LoRA: add --merge to put it into the base, or give --format diffusers"
        )
    if form == "folder" and tune == "full" and merge:
        raise DirectAlignError(
            f"--merge: {finished.folder} trained all weights, there is no LoRA to merge: leave --merge out"
        )
    if form != "folder" and tune == "full":
        raise DirectAlignError(
            f"--format {form}: {finished.folder} trained all weights, there is no LoRA to write: give --format folder"
        )
