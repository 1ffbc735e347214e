"""`directalign export RUN` and `directalign average RUN`: weights in other formats, and their mean.

export   weights that other programs read, with a model card, on this machine or on the Hub
average  the mean of a run's checkpoints, optionally mixed with the base model
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DirectAlignError
from .common import (
    Debug,
    RunFolder,
    Step,
    Strength,
    flag,
    log_to_stderr,
    one_line_errors,
    option,
    require_room,
    without_garbage_collection,
)


def export(
    folder: RunFolder,
    form: Annotated[
        Literal["diffusers", "comfyui", "kohya", "checkpoint", "folder"],
        flag(
            "--format",
            "LoRA file for diffusers, ComfyUI or kohya; checkpoint: the whole model in one file; "
            "folder: whole pipeline for diffusers.",
        ),
    ],
    out: Annotated[Path | None, option("New folder; default: DIR/export/FORMAT.", "DIR")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        option("Of the weights; default: float32 for a LoRA, bfloat16 for a pipeline."),
    ] = None,
    merge: Annotated[
        bool, flag("--merge", "Merge the LoRA into the base model; for --format folder.")
    ] = False,
    max_shard_size: Annotated[
        str, option("Largest file of weights; for --format folder.", "SIZE")
    ] = "5GB",
    push_to_hub: Annotated[
        str | None, option("Upload the export to this model repository.", "OWNER/NAME")
    ] = None,
    private: Annotated[
        bool, flag("--private", "Make the repository private; with --push-to-hub.")
    ] = False,
    step: Step = None,
    strength: Strength = 1.0,
    debug: Debug = False,
) -> None:
    """Write a run for diffusers, ComfyUI, A1111 or Forge; upload it with --push-to-hub."""
    with one_line_errors(debug):
        if private and push_to_hub is None:
            raise DirectAlignError(
                "--private is for --push-to-hub OWNER/NAME: give both, or neither"
            )
        with without_garbage_collection():
            from ..export import export_run
            from ..io.hub import check_upload, push

        if push_to_hub is not None:
            check_upload(push_to_hub)
        with log_to_stderr():
            done = export_run(folder, form, out, dtype, merge, max_shard_size, step, strength)
        typer.echo(done)
        if push_to_hub is not None:
            typer.echo(push(done, push_to_hub, private))


def average(
    folder: RunFolder,
    out: Annotated[Path, option("New folder; sample, evaluate and export accept it.", "DIR")],
    steps: Annotated[str | None, option("Checkpoints of these steps.", "N,N,...")] = None,
    last: Annotated[int | None, option("The newest K checkpoints.", "K", min=1)] = None,
    ema: Annotated[
        bool | None,
        flag("--ema/--trained", "Moving average, or weights; default: the average if any."),
    ] = None,
    base_share: Annotated[
        float, option("Share of the base model; a LoRA is scaled by 1 − S.", "S", min=0)
    ] = 0.0,
    rank: Annotated[
        int | None,
        option("Reduce a LoRA to this rank; default: exact, the ranks' sum.", "R", min=1),
    ] = None,
    debug: Debug = False,
) -> None:
    """Average checkpoints of a run into a new run folder; --base-share mixes in the base model."""
    with one_line_errors(debug):
        numbers = None if steps is None else [each.strip() for each in steps.split(",")]
        if numbers is not None and not all(each.isdecimal() for each in numbers):
            raise DirectAlignError(
                f"--steps {steps}: give whole numbers with commas between them, such as 20,30,40"
            )
        require_room(out)
        with without_garbage_collection():
            from ..export.average import RECORD, average_run

        selected = None if numbers is None else [int(each) for each in numbers]
        done = average_run(folder, out, selected, last, ema, base_share, rank)
        if rank is not None:
            lora = json.loads((done / RECORD).read_text(encoding="utf-8"))["averaged"]["lora"]
            error, layer = lora["largest_relative_error"], lora["of_layer"]
            typer.echo(f"rank {rank}: relative error of the update at most {error:.2%}, in {layer}")
        typer.echo(done)
