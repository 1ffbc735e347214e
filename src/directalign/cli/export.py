"""`directalign export RUN`: weights that other programs read, with a model card, on this machine or on the Hub."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, RunFolder, one_line_errors


class Format(str, Enum):
    """What is written."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"
    folder = "folder"


class Dtype(str, Enum):
    """Of the written weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    folder: RunFolder,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="A LoRA file for diffusers, ComfyUI or kohya's tools, or folder: the whole pipeline.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="New folder for the export; export/FORMAT in the run's if not given.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Of the weights; if not given, a LoRA stays as trained and a pipeline becomes bfloat16."
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Put the LoRA into the base's weights; for --format folder."),
    ] = False,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest file of weights; for --format folder.")
    ] = "5GB",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the exported folder to this model repository.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private; with --push-to-hub.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a finished run for diffusers, ComfyUI, A1111 or Forge, and upload it if asked."""
    with one_line_errors(debug):
        from ..types import DirectAlignError

        if private and push_to_hub is None:
            raise DirectAlignError(
                "--private is for --push-to-hub OWNER/NAME: give both, or neither"
            )
        if push_to_hub is not None:
            from ..export.upload import check_ready

            check_ready(push_to_hub)
        from ..export import export_run

        done = export_run(
            folder,
            form.value,
            out,
            dtype.value if dtype is not None else None,
            merge,
            max_shard_size,
        )
        typer.echo(done)
        if push_to_hub is not None:
            from ..export.upload import push

            typer.echo(push(done, push_to_hub, private))
