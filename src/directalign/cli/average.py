"""`directalign average RUN`: the mean of a run's checkpoints, or its tuned weights brought closer to the base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, RunFolder, one_line_errors, require_room


def average(
    folder: RunFolder,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="New folder, which sample, evaluate and export take for a run."
        ),
    ],
    steps: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Checkpoints of these steps.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The newest K checkpoints.")
    ] = None,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--trained",
            help="Their moving averages, or the weights themselves; averages if there are any.",
        ),
    ] = None,
    base_share: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="S",
            help="Mix in this share of the base model; of a LoRA the rest of its strength.",
        ),
    ] = 0.0,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="R",
            help="Reduce a LoRA to this rank; if not given it is exact, of the ranks' sum.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Average checkpoints of a run into a folder like a run's; with --base-share S, step back toward the base model."""
    with one_line_errors(debug):
        chosen = None if steps is None else _numbers(steps)
        require_room(out)
        from ..export.average import RECORD, average_run

        done = average_run(folder, out, chosen, last, ema, base_share, rank)
        if rank is not None:
            lora = json.loads((done / RECORD).read_text(encoding="utf-8"))["averaged"]["lora"]
            typer.echo(
                f"rank {rank}: off by {lora['largest_relative_error']:.2%} of the update at most, in {lora['of_layer']}"
            )
        typer.echo(done)


def _numbers(text: str) -> list[int]:
    from ..types import DirectAlignError

    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() for piece in pieces):
        raise DirectAlignError(
            f"--steps {text}: give whole numbers with commas between them, such as 20,30,40"
        )
    return [int(piece) for piece in pieces]
